// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/mount"
)

// A volume that grew while nobody had it mounted is grown when it is staged, and
// one that grows in use by NodeExpandVolume.
func TestNodeGrows(t *testing.T) {
	for _, fsType := range []string{mount.XFS, mount.Btrfs} {
		t.Run(fsType, func(t *testing.T) { testNodeGrows(t, fsType) })
	}
}

func testNodeGrows(t *testing.T, fsType string) {
	v, loop := filesystemVolume(t, fsType)
	b := newNode(t, v)
	size := func() int64 {
		stats, err := b.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: name, VolumePath: b.staging})
		if err != nil {
			t.Fatal(err)
		}
		return stats.GetUsage()[0].GetTotal()
	}
	grow := func(to int64) {
		loop.Resize(t, to)
		v.Location.SizeBytes = to
		b.volumes.known[name] = v
	}
	grow(512 * mib)
	if err := b.stage(t.Context(), mountCapability(writer)); err != nil {
		t.Fatal(err)
	}
	if got := size(); got < 400*mib {
		t.Errorf("%d bytes after staging", got)
	}
	request := &csispec.NodeExpandVolumeRequest{VolumeId: name, VolumePath: b.staging, CapacityRange: &csispec.CapacityRange{RequiredBytes: 1024 * mib}}
	if _, err := b.NodeExpandVolume(t.Context(), request); status.Code(csi.ToStatus(err)) != codes.Aborted {
		t.Errorf("the volume has not grown yet: got %v", err)
	}
	grow(1024 * mib)
	for range 2 {
		if resp, err := b.NodeExpandVolume(t.Context(), request); err != nil || resp.GetCapacityBytes() != 1024*mib {
			t.Errorf("got %v, %v", resp, err)
		}
	}
	if got := size(); got < 900*mib {
		t.Errorf("%d bytes after expanding", got)
	}
}
