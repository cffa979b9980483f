// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hollow

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

// Traffic is what agents have asked the API server for and got.
type Traffic struct {
	// Requests that were answered, by verb and resource ("watch localvolumes").
	Requests map[string]int `json:"requests"`
	// Codes counts the answers by HTTP status; 0 are requests without an answer.
	Codes map[int]int `json:"codes"`
	// PerSecond counts the answered requests by the second (unix time) in which they began.
	PerSecond map[int64]int `json:"perSecond"`
	// WatchBytes are those of the answers to watches, by resource, without what HTTP/2 and
	// TLS add.
	WatchBytes map[string]int64 `json:"watchBytes"`
	// ReceivedBytes and SentBytes are those of the connections, as TCP carries them.
	ReceivedBytes int64 `json:"receivedBytes"`
	SentBytes     int64 `json:"sentBytes"`
}

// meter counts the traffic of many clients. It is safe for concurrent use.
type meter struct {
	received, sent atomic.Int64

	mu      sync.Mutex
	traffic Traffic
}

func newMeter() *meter {
	return &meter{traffic: Traffic{
		Requests: map[string]int{}, Codes: map[int]int{}, PerSecond: map[int64]int{}, WatchBytes: map[string]int64{},
	}}
}

func (m *meter) read() Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.traffic
	t.Requests, t.Codes, t.PerSecond, t.WatchBytes = maps.Clone(t.Requests), maps.Clone(t.Codes), maps.Clone(t.PerSecond), maps.Clone(t.WatchBytes)
	t.ReceivedBytes, t.SentBytes = m.received.Load(), m.sent.Load()
	return t
}

func (m *meter) count(what string, code int, began time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.traffic.Codes[code]++
	if code != 0 {
		m.traffic.Requests[what]++
		m.traffic.PerSecond[began.Unix()]++
	}
}

// wire is one agent's way to the API server. It counts, and knows which of the agent's
// watches stand.
type wire struct {
	meter *meter
	// instance is what the agent's events are to say that they come from.
	instance string

	mu sync.Mutex
	// synced counts, by resource, the open watches that have had everything there was. A
	// resource that was ever watched stays in it.
	synced map[string]int
	// since is when the last of them came to be.
	since time.Time
}

// attach makes the configuration's clients use the wire.
func (w *wire) attach(config *rest.Config) {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second} // as client-go has it
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &countedConn{conn, w.meter}, nil
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &countedTrips{w, next} })
}

// inSync reports whether each resource that the agent follows has a watch that is up to
// date, and since when. want is how many resources there are at least.
func (w *wire) inSync(want int) (since time.Time, synced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.synced {
		if n == 0 {
			return time.Time{}, false
		}
	}
	return w.since, len(w.synced) >= want
}

func (w *wire) add(resource string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.synced[resource] += n
	if n > 0 {
		w.since = time.Now()
	}
}

type countedConn struct {
	net.Conn
	meter *meter
}

// Read implements net.Conn.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.meter.received.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.meter.sent.Add(int64(n))
	return n, err
}

type countedTrips struct {
	wire *wire
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *countedTrips) RoundTrip(req *http.Request) (*http.Response, error) {
	verb, resource := Asked(req)
	if verb == "create" && resource == "events" {
		var err error
		if req, err = inItsName(req, t.wire.instance); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		t.wire.meter.count("", 0, began)
		return resp, err
	}
	t.wire.meter.count(verb+" "+resource, resp.StatusCode, began)
	if verb == "watch" && resp.StatusCode == http.StatusOK {
		body := &watchBody{ReadCloser: resp.Body, wire: t.wire, resource: resource}
		if req.URL.Query().Get("sendInitialEvents") != "true" {
			body.becomeSynced()
		}
		t.wire.add(resource, 0)
		resp.Body = body
	}
	return resp, nil
}

// initialEnd is in the event that ends what a watch begins with (KEP-3157), in JSON as in
// protobuf.
var initialEnd = []byte("k8s.io/initial-events-end")

// watchBody is the answer to a watch.
type watchBody struct {
	io.ReadCloser
	wire     *wire
	resource string

	mu     sync.Mutex
	tail   []byte
	synced bool
	ended  bool
}

// Read implements io.Reader.
func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	m := b.wire.meter
	m.mu.Lock()
	m.traffic.WatchBytes[b.resource] += int64(n)
	m.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.synced && !b.ended {
		seen := slices.Concat(b.tail, p[:n])
		if bytes.Contains(seen, initialEnd) {
			b.becomeSynced()
			b.tail = nil
		} else {
			b.tail = bytes.Clone(seen[max(0, len(seen)-len(initialEnd)):])
		}
	}
	if err != nil {
		b.end()
	}
	return n, err
}

// Close implements io.Closer.
func (b *watchBody) Close() error {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	return b.ReadCloser.Close()
}

func (b *watchBody) becomeSynced() {
	b.synced = true
	b.wire.add(b.resource, 1)
}

func (b *watchBody) end() {
	if b.synced && !b.ended {
		b.wire.add(b.resource, -1)
	}
	b.ended = true
}

// Asked returns the verb and the resource, with its subresource, of a request to the API
// server.
func Asked(req *http.Request) (verb, resource string) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return strings.ToLower(req.Method), req.URL.Path
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	resource = parts[0]
	if len(parts) > 2 {
		resource = fmt.Sprintf("%s/%s", parts[0], parts[2])
	}
	switch req.Method {
	case http.MethodGet:
		verb = "get"
		if len(parts) == 1 {
			verb = "list"
		}
		if req.URL.Query().Get("watch") != "" {
			verb = "watch"
		}
	case http.MethodPost:
		verb = "create"
	case http.MethodPut:
		verb = "update"
	default:
		verb = strings.ToLower(req.Method)
	}
	return verb, resource
}
