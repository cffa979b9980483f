// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Every manifest that a user applies is accepted strictly: no field that the
// apiserver does not know.
func TestManifests(t *testing.T) {
	t.Parallel()
	strict := client.WithFieldValidation(server.admin, "Strict")
	files := []string{filepath.Join(deploy, "berth.yaml"), filepath.Join("..", "..", "hack", "demo", "claims.yaml")}
	for _, pattern := range []string{filepath.Join(deploy, "examples", "[^k]*.yaml")} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no file matches %s (%v)", pattern, err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		objects, err := readManifests(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(objects) == 0 {
			t.Errorf("%s is empty", file)
		}
		for _, object := range objects {
			if object.GetNamespace() != "" {
				object.SetNamespace(namespace) // the only one that is there
			}
			err := strict.Create(t.Context(), object, client.DryRunAll)
			// What the suite has applied itself was accepted before.
			if err != nil && !apierrors.IsAlreadyExists(err) {
				t.Errorf("%s: %s %s: %v", file, object.GetKind(), object.GetName(), err)
			}
		}
	}
}
