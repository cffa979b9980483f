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

// VG is a host with one disk and one volume group of ours on it.
type VG struct {
	*Host
	Name, UUID string
	// Devices of the group.
	Devices []string
}

// NewVG returns a volume group in which volumes of sizeBytes together have room.
func NewVG(t testing.TB, sizeBytes int64) *VG {
	t.Helper()
	const path = "/dev/vdb"
	h := NewHost(t)
	h.AddDisk(path, dataStart+sizeBytes, "")
	g, err := lvm.NewClient(h.Runner(), h.Flush).CreateGroup(context.Background(), lvm.GroupSpec{
		Name: "berth-test", PoolUID: PoolUID, PoolSet: "test", Devices: []string{path}, ExtentBytes: ExtentBytes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &VG{Host: h, Name: g.Name, UUID: g.UUID, Devices: []string{path}}
}

// Backend returns a new backend over the group, as an agent that has just started
// makes it. It works until the next Reboot.
func (v *VG) Backend() *lvm.Backend {
	b, err := lvm.NewBackend(lvm.NewClient(v.Runner(), v.Flush), lvm.Options{
		GroupName: v.Name, GroupUUID: v.UUID,
		Devices: func() []string { return v.Devices },
		Nodes:   v.Nodes(),
		Seqno:   v.Seqno,
		Journal: v.Journal(), Metadata: v.Metadata(),
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return b
}
