// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/berth-dev/berth/tests/testbed/kube"
)

// TestManifests reads the manifests as strictly as the API server does, and looks
// whether their images are those that are built or on the nodes.
func TestManifests(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme, storagev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	known := sets.New(kube.BusyboxImage, kube.ResizerImage)
	for name := range images("") {
		known.Insert("localhost/" + name)
	}
	files, err := filepath.Glob("manifests/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
			object, _, err := decoder.Decode(document, nil, nil)
			if err != nil {
				t.Errorf("%s: %v in\n%s", file, err, document)
				continue
			}
			var pod corev1.PodSpec
			switch object := object.(type) {
			case *appsv1.Deployment:
				pod = object.Spec.Template.Spec
			case *appsv1.DaemonSet:
				pod = object.Spec.Template.Spec
			}
			for _, container := range pod.Containers {
				if !known.Has(container.Image) {
					t.Errorf("%s: nobody builds %s", file, container.Image)
				}
			}
		}
	}
}
