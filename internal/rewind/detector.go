// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rewind notices that the API server's state has gone back, as it does when etcd is
// restored from a backup. Whoever watches then goes on from a resourceVersion that is still to
// come: it is told nothing until as much has happened again, for as long as the backup was old,
// and what it has in memory is of a cluster that nobody else knows. Only reading all of it anew
// helps, which is what a process does that starts. Kubernetes asks operators to start every
// component again after a restore, or to restore with `etcdutl snapshot restore --bump-revision
// --mark-compacted`, after which watches fail and nothing has to be noticed
// (kubernetes.io/docs/tasks/administer-cluster/configure-upgrade-etcd).
package rewind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	"k8s.io/client-go/rest"
)

// ErrWentBack: the API server's state is older than what this process has seen of it.
var ErrWentBack = errors.New("the API server's state is older than what was seen of it, as after a restore of etcd; all of it must be read anew")

// Detector looks whether the state has gone back, once each time that the API server could not
// be reached: when a watch is to go on after that. It asks for nothing at other times.
type Detector struct {
	// lost counts how often the API server could not be reached, looked for which of these the
	// last look was.
	lost, looked atomic.Uint64
	// looking is held by who looks: all watches of a process end at once, and one look tells.
	looking sync.Mutex
	back    chan error
}

// Follow has the clients that are made from a configuration looked at. It changes the configuration.
func Follow(config *rest.Config) *Detector {
	d := &Detector{back: make(chan error, 1)}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &transport{next: next, detector: d} })
	return d
}

// Start waits until the state has gone back, which it returns as ErrWentBack, or until the
// context ends, which is no error. It is a manager's Runnable: the manager ends with it.
func (d *Detector) Start(ctx context.Context) error {
	select {
	case err := <-d.back:
		return err
	case <-ctx.Done():
		return nil
	}
}

// NeedLeaderElection is false: whoever stands by has a memory, too.
func (d *Detector) NeedLeaderElection() bool { return false }

type transport struct {
	next     http.RoundTripper
	detector *Detector
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(request *http.Request) (*http.Response, error) {
	if from, ok := watchFrom(request); ok {
		t.look(request, from)
	}
	response, err := t.next.RoundTrip(request)
	switch {
	case err != nil && request.Context().Err() == nil:
		t.detector.lost.Add(1)
	case err == nil && (response.StatusCode == http.StatusBadGateway || response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusGatewayTimeout):
		t.detector.lost.Add(1) // by what is before the API server, or by one that is ending
	}
	return response, err
}

// watchFrom tells from which resourceVersion a request goes on with a watch.
func watchFrom(request *http.Request) (uint64, bool) {
	query := request.URL.Query()
	if request.Method != http.MethodGet || query.Get("watch") == "" {
		return 0, false
	}
	// 0 stands for any.
	from, err := strconv.ParseUint(query.Get("resourceVersion"), 10, 64)
	return from, err == nil && from > 0
}

// look compares where a watch goes on with where the API server is, if that could not be
// reached since the last look. A look that comes to nothing is repeated by the next watch. A
// watch is at most some minutes behind what was seen, for it gets bookmarks: what it does not
// tell is a state that went back by less, and that is made up for as soon.
func (t *transport) look(watch *http.Request, from uint64) {
	if !t.detector.looking.TryLock() {
		return
	}
	defer t.detector.looking.Unlock()
	lost := t.detector.lost.Load()
	if lost == t.detector.looked.Load() {
		return
	}
	now, err := t.resourceVersion(watch)
	if err != nil {
		return // the watch itself will hardly fare better, and says so
	}
	t.detector.looked.Store(lost)
	if now < from {
		select {
		case t.detector.back <- fmt.Errorf("%s is at resourceVersion %d, and was at %d: %w", watch.URL.Path, now, from, ErrWentBack):
		default:
		}
	}
}

// resourceVersion asks for that of the list which a watch follows: the latest, for a list
// without one is read from etcd or what is as new
// (kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list).
func (t *transport) resourceVersion(watch *http.Request) (uint64, error) {
	request := watch.Clone(watch.Context())
	query := request.URL.Query()
	for _, parameter := range []string{"watch", "resourceVersion", "resourceVersionMatch", "allowWatchBookmarks", "sendInitialEvents", "timeoutSeconds"} {
		query.Del(parameter)
	}
	query.Set("limit", "1")
	request.URL.RawQuery = query.Encode()
	request.Header.Set("Accept", "application/json")
	response, err := t.next.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET %s: %s", request.URL.Path, response.Status)
	}
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	const mostBytes = 4 << 20 // one object, and etcd takes none larger than 1.5 MiB
	if err := json.NewDecoder(io.LimitReader(response.Body, mostBytes)).Decode(&list); err != nil {
		return 0, fmt.Errorf("read %s: %w", request.URL.Path, err)
	}
	return strconv.ParseUint(list.Metadata.ResourceVersion, 10, 64)
}
