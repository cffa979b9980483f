// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hollow

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

func TestAsked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ method, path, want string }{
		{"GET", "/apis/berth.dev/v1alpha1/localvolumes?fieldSelector=spec.nodeName%3Da&watch=true", "watch localvolumes"},
		{"GET", "/apis/berth.dev/v1alpha1/blockdevices?labelSelector=a%3Db", "list blockdevices"},
		{"GET", "/apis/berth.dev/v1alpha1/blockdevices/bd-1", "get blockdevices"},
		{"PATCH", "/apis/berth.dev/v1alpha1/localvolumes/pvc-1/status", "patch localvolumes/status"},
		{"GET", "/api/v1/namespaces/berth-system/configmaps?watch=1", "watch configmaps"},
		{"GET", "/api/v1/nodes/a", "get nodes"},
		{"DELETE", "/api/v1/namespaces/a", "delete namespaces"},
		{"POST", "/apis/events.k8s.io/v1/namespaces/default/events", "create events"},
		{"PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "update leases"},
		{"GET", "/readyz", "get /readyz"},
	} {
		verb, resource := Asked(httptest.NewRequest(test.method, test.path, nil))
		if got := verb + " " + resource; got != test.want {
			t.Errorf("%s %s is %q, want %q", test.method, test.path, got, test.want)
		}
	}
}

// answers plays the API server: each request is answered by the next body.
type answers []string

func (a *answers) RoundTrip(*http.Request) (*http.Response, error) {
	if len(*a) == 0 {
		return nil, errors.New("it is away")
	}
	body := (*a)[0]
	*a = (*a)[1:]
	// A byte at a time: what ends the beginning may come in pieces.
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(iotest.OneByteReader(strings.NewReader(body)))}, nil
}

func TestInSync(t *testing.T) {
	t.Parallel()
	m := newMeter()
	w := &wire{meter: m, synced: map[string]int{}}
	config := &rest.Config{}
	w.attach(config)
	events := `{"type":"ADDED"}` + "\n" + `{"type":"BOOKMARK","object":{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}}` + "\n"
	server := answers{events, events, "{}"}
	trip := config.WrapTransport(&server)
	begin := func(query string) io.ReadCloser {
		t.Helper()
		resp, err := trip.RoundTrip(httptest.NewRequest(http.MethodGet, "/apis/berth.dev/v1alpha1/pools?watch=true"+query, nil))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Body
	}
	expect := func(what string, want bool) {
		t.Helper()
		if _, synced := w.inSync(1); synced != want {
			t.Errorf("%s: in sync %v, want %v", what, synced, want)
		}
	}
	expect("before any watch", false)
	body := begin("&sendInitialEvents=true")
	expect("a watch that has told nothing", false)
	if _, err := io.ReadFull(body, make([]byte, len(events)-1)); err != nil {
		t.Fatal(err)
	}
	expect("a watch that has told what there is", true)
	next := begin("")
	_ = body.Close()
	_ = body.Close()
	expect("another goes on from there", true)
	_, _ = io.Copy(io.Discard, next)
	expect("it has ended", false)
	if response, err := config.WrapTransport(&answers{}).RoundTrip(httptest.NewRequest(http.MethodGet, "/api/v1/nodes/a", nil)); err == nil {
		_ = response.Body.Close()
		t.Error("an error was swallowed")
	}

	got := m.read()
	if got.Requests["watch pools"] != 2 || got.Codes[200] != 2 || got.Codes[0] != 1 || got.WatchBytes["pools"] != int64(2*len(events)-1) {
		t.Errorf("counted %+v", got)
	}
	perSecond := 0
	for _, n := range got.PerSecond {
		perSecond += n
	}
	if perSecond != 2 {
		t.Errorf("%d requests in all seconds, want 2", perSecond)
	}
}

func TestEventsInItsName(t *testing.T) {
	t.Parallel()
	for _, mediaType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
		if !ok {
			t.Fatal(mediaType)
		}
		event := &eventsv1.Event{Note: "a note", ReportingInstance: "berth-node-agent-this-machine"}
		body, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, eventsv1.SchemeGroupVersion), event)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPost, "/apis/events.k8s.io/v1/namespaces/default/events", strings.NewReader(string(body)))
		req.Header.Set("Content-Type", mediaType)
		req, err = inItsName(req, "berth-node-agent-pod")
		if err != nil {
			t.Fatalf("%s: %v", mediaType, err)
		}
		sent, err := io.ReadAll(req.Body)
		if err != nil || int64(len(sent)) != req.ContentLength {
			t.Fatalf("%s: %d bytes for a length of %d, %v", mediaType, len(sent), req.ContentLength, err)
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(sent, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", mediaType, err)
		}
		if got, ok := object.(*eventsv1.Event); !ok || got.ReportingInstance != "berth-node-agent-pod" || got.Note != "a note" {
			t.Errorf("%s: sent %+v", mediaType, object)
		}
	}
}
