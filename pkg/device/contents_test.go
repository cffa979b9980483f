// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/tests/contents"
)

// TestCreateRefusesEveryContent lets the registry take a disk for usable that holds
// something: the backend reads it itself (I3), and does not take it.
func TestCreateRefusesEveryContent(t *testing.T) {
	t.Parallel()
	for i, sample := range contents.All() {
		t.Run(sample.Name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, devicetest.NewFileHost(t, contents.SizeBytes))
			disk := pathOf(t, n.host, "disk-0")
			must(t, sample.Write(disk))
			before, err := contents.Fingerprint(disk)
			must(t, err)
			if rec, err := n.backend.Create(t.Context(), spec(i, 1)); !errors.Is(err, volume.ErrNoSpace) {
				t.Errorf("Create = %+v, %v, want ErrNoSpace", rec, err)
			}
			claims, err := n.registry.Claims(t.Context())
			must(t, err)
			if len(claims) > 0 {
				t.Errorf("the disk is claimed: %+v", claims)
			}
			after, err := contents.Fingerprint(disk)
			must(t, err)
			if after != before {
				t.Error("the disk was changed")
			}
		})
	}
}
