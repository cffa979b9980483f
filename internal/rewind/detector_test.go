// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package rewind_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/internal/rewind"
)

// apiServer answers lists and watches of one kind, and has a state that can go back.
type apiServer struct {
	version atomic.Int64
	// away refuses everything, strange answers lists with something else.
	away, strange atomic.Bool
	lists         atomic.Int64
	token         atomic.Value
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.token.Store(r.Header.Get("Authorization"))
	switch {
	case s.away.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Query().Get("watch") != "":
		w.WriteHeader(http.StatusOK)
	case s.strange.Load():
		fmt.Fprint(w, "<html>")
	default:
		s.lists.Add(1)
		if r.URL.Query().Get("limit") != "1" || r.URL.Query().Get("fieldSelector") != "spec.nodeName=node1" || r.URL.Query().Has("resourceVersion") {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, `{"kind":"PoolList","metadata":{"resourceVersion":"%d","continue":"x"},"items":[{"metadata":{"resourceVersion":"1"}}]}`, s.version.Load())
	}
}

type client struct {
	t        *testing.T
	server   *apiServer
	url      string
	http     *http.Client
	detector *rewind.Detector
}

func newClient(t *testing.T) *client {
	server := &apiServer{}
	at := httptest.NewServer(server)
	t.Cleanup(at.Close)
	config := &rest.Config{Host: at.URL, BearerToken: "secret"}
	detector := rewind.Follow(config)
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, server: server, url: at.URL, http: h, detector: detector}
}

// watch goes on from a resourceVersion.
func (c *client) watch(from string) {
	c.t.Helper()
	response, err := c.http.Get(c.url + "/apis/berth.dev/v1alpha1/pools?watch=true&allowWatchBookmarks=true&timeoutSeconds=300&fieldSelector=spec.nodeName%3Dnode1&resourceVersion=" + from)
	if err != nil {
		return
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		c.t.Error(err)
	}
}

// outage is one that the client notices.
func (c *client) outage() {
	c.server.away.Store(true)
	c.watch("100")
	c.server.away.Store(false)
}

// ended tells whether the process would end.
func (c *client) ended() error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Millisecond)
	defer cancel()
	return c.detector.Start(ctx)
}

func TestDetector(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do   func(*client)
		back bool
		// lists is how often it asked.
		lists int64
	}{
		"nothing happens": {do: func(c *client) {
			c.server.version.Store(5) // that nobody asks for
			c.watch("100")
			c.watch("101")
		}},
		"it was away and is where it was": {lists: 1, do: func(c *client) {
			c.server.version.Store(100)
			c.outage()
			c.watch("100")
			c.watch("100")
		}},
		"it was away twice": {lists: 2, do: func(c *client) {
			c.server.version.Store(120)
			c.outage()
			c.watch("100")
			c.outage()
			c.watch("110")
		}},
		"all watches go on at once": {lists: 1, do: func(c *client) {
			c.server.version.Store(100)
			c.outage()
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() { c.watch("100") })
			}
			all.Wait()
		}},
		"it went back": {lists: 1, back: true, do: func(c *client) {
			c.server.version.Store(99)
			c.outage()
			c.watch("100")
		}},
		"it went back and answers strangely at first": {lists: 1, back: true, do: func(c *client) {
			c.server.version.Store(99)
			c.outage()
			c.server.strange.Store(true)
			c.watch("100")
			c.server.strange.Store(false)
			c.watch("100")
		}},
		"a watch that begins anew": {lists: 0, do: func(c *client) {
			c.server.version.Store(1)
			c.outage()
			c.watch("")
			c.watch("0")
		}},
		"it could not be reached at all": {lists: 1, back: true, do: func(c *client) {
			c.server.version.Store(99)
			url := c.url
			c.url = "http://127.0.0.1:1" // nobody listens there
			c.watch("100")
			c.url = url
			c.watch("100")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t)
			tc.do(c)
			err := c.ended()
			if back := errors.Is(err, rewind.ErrWentBack); back != tc.back || (err != nil && !back) {
				t.Errorf("it ends with %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "is at resourceVersion 99, and was at 100") {
				t.Errorf("it says %q", err)
			}
			if n := c.server.lists.Load(); n != tc.lists {
				t.Errorf("it asked %d times, want %d", n, tc.lists)
			}
			if token := c.server.token.Load(); token != "Bearer secret" {
				t.Errorf("it came with %q", token)
			}
		})
	}
}

// A request that the client itself gives up says nothing of the API server.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	c := newClient(t)
	c.server.version.Store(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := c.http.Do(request); err == nil {
		response.Body.Close()
		t.Fatal("it was given up and answered")
	}
	c.watch("100")
	if err := c.ended(); err != nil {
		t.Error(err)
	}
}
