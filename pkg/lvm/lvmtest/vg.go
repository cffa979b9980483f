// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
)

// PoolUID is the UID of the pool that NewVG makes its group for.
const PoolUID = "b0000000-0000-4000-8000-00000000b001"

// ExtentBytes is the size of an extent of NewVG's group.
const ExtentBytes = 1 << 20

// VG is a host with one volume group of ours on all of its disks.
type VG struct {
	*Host
	Name, UUID string
	// Devices of the group.
	Devices []string
	// Layout of its volumes.
	Layout lvm.Layout
	// Thin is the policy of its thin pool; nil for thick volumes.
	Thin *lvm.ThinPolicy
	// ThinPool is a thin pool of somebody else, for Thin; nil for one of ours.
	ThinPool *lvm.ThinPoolID
	// Snapshots is how much room its thick snapshots get; nil for the default.
	Snapshots *lvm.SnapshotPolicy
}

// NewVG returns a volume group in which volumes of sizeBytes together have room.
func NewVG(t testing.TB, sizeBytes int64) *VG {
	t.Helper()
	return newVG(t, lvm.LayoutLinear, sizeBytes)
}

// NewStripedVG is NewVG with striped volumes on disks that are sizeBytes together.
func NewStripedVG(t testing.TB, disks int, sizeBytes int64) *VG {
	t.Helper()
	sizes := make([]int64, disks)
	for i := range sizes {
		sizes[i] = sizeBytes / int64(disks)
	}
	return newVG(t, lvm.LayoutStriped, sizes...)
}

// NewRaidVG is NewVG with volumes of a redundant layout on that many disks, each of which
// has room for sizeBytes.
func NewRaidVG(t testing.TB, layout lvm.Layout, disks int, sizeBytes int64) *VG {
	t.Helper()
	sizes := make([]int64, disks)
	for i := range sizes {
		sizes[i] = sizeBytes
	}
	return newVG(t, layout, sizes...)
}

// ThinMetadataBytes is what a thin pool of NewThinVG needs beside its data.
const ThinMetadataBytes = 4 * 8 << 20

// NewThinVG is NewVG with a thin pool that has room for sizeBytes, and promises no more.
func NewThinVG(t testing.TB, sizeBytes int64) *VG {
	t.Helper()
	v := newVG(t, lvm.LayoutLinear, sizeBytes+ThinMetadataBytes)
	v.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	if _, err := v.Backend().Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// NewThinVGOf is NewThinVG with a pool of another layout, on that many disks.
func NewThinVGOf(t testing.TB, layout lvm.Layout, disks int, sizeBytes int64) *VG {
	t.Helper()
	share := map[lvm.Layout]int64{
		lvm.LayoutStriped: int64(disks), lvm.LayoutMirror: 1, lvm.LayoutRAID5: int64(disks - 1), lvm.LayoutRAID6: int64(disks - 2), lvm.LayoutRAID10: int64(disks / 2),
	}[layout]
	// Each disk may hold a leg of the data and one of the metadata, which may double.
	beside := 2*ThinMetadataBytes/4 + 2*ExtentBytes
	if layout == lvm.LayoutStriped {
		beside = ThinMetadataBytes
	}
	sizes := make([]int64, disks)
	for i := range sizes {
		sizes[i] = (sizeBytes/ExtentBytes+share-1)/share*ExtentBytes + int64(beside)
	}
	v := newVG(t, layout, sizes...)
	v.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	if _, err := v.Backend().Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// Policy is what lvm.Options.Thin is for the group.
func (v *VG) Policy() func() lvm.ThinPolicy {
	if v.Thin == nil {
		return nil
	}
	return func() lvm.ThinPolicy { return *v.Thin }
}

// SnapshotPolicy is what lvm.Options.Snapshots is for the group.
func (v *VG) SnapshotPolicy() func() lvm.SnapshotPolicy {
	if v.Snapshots == nil {
		return nil
	}
	return func() lvm.SnapshotPolicy { return *v.Snapshots }
}

func newVG(t testing.TB, layout lvm.Layout, sizesBytes ...int64) *VG {
	t.Helper()
	h := NewHost(t)
	var paths []string
	for i, size := range sizesBytes {
		path := "/dev/vd" + string(rune('b'+i))
		h.AddDisk(path, dataStart+size, "")
		paths = append(paths, path)
	}
	g, err := lvm.NewClient(h.Runner(), h.Flush).CreateGroup(context.Background(), lvm.GroupSpec{
		Name: "berth-test", PoolUID: PoolUID, PoolSet: "test", Devices: paths, ExtentBytes: ExtentBytes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &VG{Host: h, Name: g.Name, UUID: g.UUID, Devices: paths, Layout: layout}
}

// Backend returns a new backend over the group, as an agent that has just started
// makes it. It works until the next Reboot.
func (v *VG) Backend() *lvm.Backend {
	b, err := lvm.NewBackend(lvm.NewClient(v.Runner(), v.Flush), lvm.Options{
		GroupName: v.Name, GroupUUID: v.UUID,
		Devices: func() []string { return v.Devices },
		Layout:  v.Layout,
		Thin:    v.Policy(), ThinPool: v.ThinPool, Snapshots: v.SnapshotPolicy(),
		Nodes: v.Nodes(),
		Seqno: v.Seqno, Instants: v.Instants(),
		Journal: v.Journal(), Metadata: v.Metadata(),
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return b
}
