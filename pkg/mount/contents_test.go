// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/tests/contents"
)

// TestFormatRefusesEveryContent is I3: nothing that was not proven blank is formatted,
// and what is there stays as it is.
func TestFormatRefusesEveryContent(t *testing.T) {
	for _, sample := range contents.All() {
		t.Run(sample.Name, func(t *testing.T) {
			mounttest.RequireRoot(t)
			file := filepath.Join(t.TempDir(), "disk")
			if err := sample.Disk(file); err != nil {
				t.Fatal(err)
			}
			before, err := contents.Fingerprint(file)
			if err != nil {
				t.Fatal(err)
			}
			loop, err := mounttest.Attach(file)
			if err != nil {
				t.Fatal(err)
			}
			host := &counting{Host: mounttest.Here(t)}
			for _, fsType := range everyType {
				for _, never := range []bool{true, false} {
					err := mount.NewFormatter(host).Format(t.Context(), mount.FormatRequest{
						Device: loop.Path, FSType: fsType, UUID: uuidA, NeverFormatted: never,
					})
					if !errors.Is(err, volume.ErrNotBlank) && (never || !errors.Is(err, volume.ErrIdentity)) {
						t.Errorf("format as %s, never formatted %v: %v, want a refusal", fsType, never, err)
					}
				}
			}
			if ran := host.programs(); ran != "" {
				t.Errorf("ran %q", ran)
			}
			loop.Detach()
			if after, err := contents.Fingerprint(file); err != nil || after != before {
				t.Errorf("the disk was changed (%v)", err)
			}
		})
	}
}
