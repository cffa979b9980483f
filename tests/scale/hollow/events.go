// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hollow

import (
	"bytes"
	"fmt"
	"io"
	"net/http"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// inItsName returns the request to create an event with another instance that it comes from.
// client-go takes that from the hostname, which is a pod's name; all hollow agents share one.
func inItsName(req *http.Request, instance string) (*http.Request, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if err := req.Body.Close(); err != nil {
		return nil, err
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("read an event: %w", err)
	}
	event, ok := object.(*eventsv1.Event)
	if !ok {
		return nil, fmt.Errorf("an event is a %T", object)
	}
	event.ReportingInstance = instance
	mediaType := req.Header.Get("Content-Type")
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
	if !ok {
		return nil, fmt.Errorf("an event is in %q", mediaType)
	}
	body, err = runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, eventsv1.SchemeGroupVersion), event)
	if err != nil {
		return nil, fmt.Errorf("write an event: %w", err)
	}
	req = req.Clone(req.Context())
	req.ContentLength = int64(len(body))
	req.Body = io.NopCloser(bytes.NewReader(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	return req, nil
}
