// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// ownRequests counts what the benchmark itself asks of the API server, so that it
// can be taken off.
type ownRequests struct{ count atomic.Int64 }

func (o *ownRequests) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if counted(resourceOf(request.URL.Path), "") {
			o.count.Add(1)
		}
		return next.RoundTrip(request)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

// resourceOf is the resource in a request's path; empty for /metrics and the like.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return ""
	}
	if len(parts) >= 3 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	return parts[0]
}

// counted says which requests count: all but events, leases, the nodes' own
// heartbeats and what has no resource. Watches are counted when they end, which
// has nothing to do with volumes, so they are left out.
func counted(resource, verb string) bool {
	switch resource {
	case "", "events", "leases", "nodes", "csinodes", "tokenreviews", "subjectaccessreviews":
		return false
	}
	return verb != "WATCH"
}

// requestMeter reads the API server's own count of requests.
type requestMeter struct {
	client *rest.RESTClient
	own    *ownRequests
}

func newRequestMeter(config *rest.Config, own *ownRequests) (*requestMeter, error) {
	raw := rest.CopyConfig(config)
	raw.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	raw.APIPath = "/"
	c, err := rest.UnversionedRESTClientFor(raw)
	if err != nil {
		return nil, fmt.Errorf("connect for metrics: %w", err)
	}
	return &requestMeter{client: c, own: own}, nil
}

// reading is the count of requests by others at one moment.
type reading struct{ total float64 }

func (r reading) since(before reading) float64 { return r.total - before.total }

func (m *requestMeter) read(ctx context.Context) (reading, error) {
	own := m.own.count.Load()
	text, err := m.client.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return reading{}, fmt.Errorf("read the API server's metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return reading{}, fmt.Errorf("parse the API server's metrics: %w", err)
	}
	var total float64
	for _, metric := range families["apiserver_request_total"].GetMetric() {
		labels := map[string]string{}
		for _, pair := range metric.GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		if counted(labels["resource"], labels["verb"]) {
			total += metric.GetCounter().GetValue()
		}
	}
	return reading{total: total - float64(own)}, nil
}
