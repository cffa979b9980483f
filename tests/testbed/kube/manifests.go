// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// Bootstrap is what every cluster has from the start.
//
//go:embed manifests/bootstrap.yaml
var Bootstrap []byte

// snapshotModule holds the CRDs of snapshots.
const snapshotModule = "github.com/kubernetes-csi/external-snapshotter/client/v8"

// CRDsKey identifies the CRDs.
func CRDsKey() *artifact.Key {
	return artifact.NewKey("snapshot-crds").Add("version", SnapshotterVersion)
}

// BuildCRDs copies the CRDs of snapshots and group snapshots out of their
// module into dir.
func BuildCRDs(ctx context.Context, repository, dir string) error {
	module, err := ModuleDir(ctx, repository, "sidecars", snapshotModule)
	if err != nil {
		return err
	}
	manifests, err := filepath.Glob(filepath.Join(module, "config", "crd", "*snapshot.storage.k8s.io_*.yaml"))
	if err != nil {
		return err
	}
	if len(manifests) == 0 {
		return fmt.Errorf("module %s has no CRDs", snapshotModule)
	}
	for _, manifest := range manifests {
		content, err := os.ReadFile(manifest)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(manifest)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
