// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// memory is a journal that outlives its backend.
type memory map[string]lvm.Generation

func (m memory) Keep(g lvm.Generation) error { m[g.GroupUUID] = g; return nil }

func (m memory) Kept(uuid string) (lvm.Generation, bool, error) { g, ok := m[uuid]; return g, ok, nil }

// TestKernelTornMetadata cuts each kind of change short on a real disk, as a loss of power
// does: the header of the change is on the disk, and its text up to some sector. Then lvm
// does not know the group any more, until it is rolled back.
func TestKernelTornMetadata(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	const size = 8 << 20
	journal := memory{}
	backend := func() *lvm.Backend {
		b, err := lvm.NewBackend(lvm.NewClient(r.host, lvm.DiskFlusher("/")), lvm.Options{
			GroupName: r.group.Name, GroupUUID: r.group.UUID, Devices: func() []string { return r.disks }, Journal: journal,
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	spec := func(n int) volume.Spec {
		return volume.Spec{ID: volumetest.ID(n), Name: "pvc-" + strconv.Itoa(n), SizeBytes: size, Access: volume.AccessBlock, Fresh: true}
	}
	// Enough volumes that the text has many sectors.
	b := backend()
	var first volume.Record
	for n := range 12 {
		rec, err := b.Create(ctx, spec(n))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			first = rec
		}
	}
	for name, change := range map[string]func() error{
		"create": func() error { _, err := backend().Create(ctx, spec(20)); return err },
		"delete": func() error { return backend().Delete(ctx, volumetest.ID(1), nil, volume.WipeNone) },
		"grow":   func() error { _, err := backend().Grow(ctx, volumetest.ID(0), first, 2*size); return err },
	} {
		t.Run(name, func(t *testing.T) {
			for _, sectors := range []int64{0, 1, 3} {
				before := list(t, backend())
				if _, err := backend().Grow(ctx, volumetest.ID(0), first, size); err != nil { // keeps the present generation
					t.Fatal(err)
				}
				kept := journal[r.group.UUID]
				if err := change(); err != nil {
					t.Fatal(err)
				}
				if journal[r.group.UUID].Seqno != kept.Seqno+1 {
					t.Fatalf("one change led from generation %d to %d", kept.Seqno, journal[r.group.UUID].Seqno)
				}
				if name == "create" {
					// After a loss of power no volume is active.
					r.lvm(t, "lvchange", "--yes", "--activate", "n", r.group.Name+"/"+volumetest.ID(20))
				}
				r.tear(t, journal[r.group.UUID], sectors)
				journal[r.group.UUID] = kept // the change had not come to its end
				if _, err := lvm.NewClient(r.host, lvm.DiskFlusher("/")).FindGroup(ctx, realUID); err == nil {
					t.Fatalf("lvm still knows the group after %d sectors of the text", sectors)
				}
				after := list(t, backend())
				if !slices.Equal(ids(after), ids(before)) {
					t.Errorf("after %d sectors: volumes %v, before the change %v", sectors, ids(after), ids(before))
				}
				// The change can be made again, and is undone for the next round.
				if err := change(); err != nil {
					t.Fatalf("after %d sectors: %v", sectors, err)
				}
				r.undo(t, backend(), name, spec)
			}
		})
	}
}

// tear zeroes the text that the headers lead to, from a sector on.
func (r *rig) tear(t *testing.T, g lvm.Generation, sectors int64) {
	t.Helper()
	f, err := os.OpenFile(r.disks[0], os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, h := range g.Headers {
		text := int64(binary.LittleEndian.Uint64(h.Sector[40:]))
		textSize := int64(binary.LittleEndian.Uint64(h.Sector[48:]))
		if textSize <= sectors*512 {
			t.Fatalf("the text has %d bytes", textSize)
		}
		if _, err := f.WriteAt(make([]byte, textSize-sectors*512), h.OffsetBytes+text+sectors*512); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// undo brings the group back to where it was before a change.
func (r *rig) undo(t *testing.T, b *lvm.Backend, change string, spec func(int) volume.Spec) {
	t.Helper()
	var err error
	switch change {
	case "create":
		err = b.Delete(t.Context(), volumetest.ID(20), nil, volume.WipeNone)
	case "delete":
		_, err = b.Create(t.Context(), spec(1))
	case "grow":
		r.lvm(t, "lvreduce", "--yes", "--force", "--size", "8m", r.group.Name+"/"+volumetest.ID(0))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, b *lvm.Backend) []volume.Found {
	t.Helper()
	found, err := b.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func ids(found []volume.Found) []string {
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID+" "+strconv.FormatInt(f.Record.SizeBytes, 10))
	}
	slices.Sort(ids)
	return ids
}
