// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// newHTTPServer serves /healthz, /readyz and /metrics on every replica. The manager
// starts this type first and stops it last, so it answers while the caches fill.
func newHTTPServer(ctx context.Context, address string, ready func() error, gatherer prometheus.Gatherer) (*manager.Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on --http-address: %w", err)
	}
	grace := time.Second
	return &manager.Server{
		Name:            "http",
		Server:          &http.Server{Handler: httpHandler(ready, gatherer), ReadHeaderTimeout: 5 * time.Second},
		Listener:        listener,
		ShutdownTimeout: &grace,
	}, nil
}

func httpHandler(ready func() error, gatherer prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	return mux
}

// callMetrics measures CSI calls.
type callMetrics struct{ duration *prometheus.HistogramVec }

func newCallMetrics(registerer prometheus.Registerer) (*callMetrics, error) {
	m := &callMetrics{duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_csi_call_duration_seconds",
		Help:    "Duration of CSI calls by method and gRPC code.",
		Buckets: []float64{.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"method", "code"})}
	return m, registerer.Register(m.duration)
}

// CallDone takes in one call.
func (m *callMetrics) CallDone(method string, code codes.Code, duration time.Duration) {
	m.duration.WithLabelValues(method, code.String()).Observe(duration.Seconds())
}
