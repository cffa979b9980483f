// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/tests/contents"
)

// TestNoContentIsClaimed shows every kind of content to a running inventory: it is
// never usable, neither a pool nor a volume gets the disk, and the disk stays as it is.
func TestNoContentIsClaimed(t *testing.T) {
	inv := startLive(t, newFakeClient(t))
	pool := &v1alpha1.Pool{}
	pool.Name, pool.UID = "fast-node1", "pool-uid"
	for _, sample := range contents.All() {
		t.Run(sample.Name, func(t *testing.T) {
			disk := newLoopFile(t)
			if err := sample.Disk(disk.file); err != nil {
				t.Fatal(err)
			}
			before, err := contents.Fingerprint(disk.file)
			if err != nil {
				t.Fatal(err)
			}
			disk.attach()
			bd := await(t, inv, disk.name(), "attached", func(bd *v1alpha1.BlockDevice) bool {
				return bd.Status.State == v1alpha1.DeviceActive && condition(&bd.Status) != nil
			})
			switch c := condition(&bd.Status); c.Reason {
			case v1alpha1.ReasonHasContent, v1alpha1.ReasonPartitioned, v1alpha1.ReasonInUse:
				t.Log(c.Message)
			default:
				t.Errorf("%s: %s", c.Reason, c.Message)
			}
			if c, err := inv.ClaimForPool(t.Context(), disk.name(), pool); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("ClaimForPool = %+v, %v, want ErrInvalid", c, err)
			}
			owner := device.Owner{UID: "volume-uid", Name: "pvc-1", Kind: device.OwnerVolume}
			if c, err := inv.Claim(t.Context(), disk.name(), owner); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("Claim = %+v, %v, want ErrInvalid", c, err)
			}
			disk.detach()
			if after, err := contents.Fingerprint(disk.file); err != nil || after != before {
				t.Errorf("the disk was changed (%v)", err)
			}
		})
	}
}
