// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
)

// host makes a tree of /sys and /dev as the kernel and udev make it.
type host struct {
	t    *testing.T
	root string
}

const (
	groupUUID = "rKzSh7-H9Bl-Xy8o-AASh-1QjQ-BCN2-PANzHA"
	lvUUID    = "gOts7a-ptQ4-KNPc-rs1r-YH6L-Cp42-dNgjZN"
	otherUUID = "gYjk3U-714v-KIRJ-0pnt-d15O-oPpp-mAklwZ"
	wantDM    = "LVM-rKzSh7H9BlXy8oAASh1QjQBCN2PANzHAgOts7aptQ4KNPcrs1rYH6LCp42dNgjZN"
	otherDM   = "LVM-rKzSh7H9BlXy8oAASh1QjQBCN2PANzHAgYjk3U714vKIRJ0pntd15OoPppmAklwZ"
)

var nodeID = lvm.NodeID{GroupName: "berth-fast", GroupUUID: groupUUID, Name: "a0-b1", UUID: lvUUID}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir()}
	for _, dir := range []string{"sys/block", "sys/dev/block", "dev/mapper"} {
		h.must(os.MkdirAll(filepath.Join(h.root, dir), 0o755))
	}
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// add makes dm-N with a device-mapper UUID.
func (h *host) add(n int, uuid string, sectors int) {
	h.t.Helper()
	name := fmt.Sprintf("dm-%d", n)
	dir := filepath.Join(h.root, "sys/block", name)
	h.must(os.MkdirAll(filepath.Join(dir, "dm"), 0o755))
	for file, text := range map[string]string{"dm/uuid": uuid, "dev": fmt.Sprintf("253:%d", n), "size": fmt.Sprint(sectors)} {
		h.must(os.WriteFile(filepath.Join(dir, file), []byte(text+"\n"), 0o600))
	}
	h.must(os.Symlink("../../block/"+name, filepath.Join(h.root, "sys/dev/block", fmt.Sprintf("253:%d", n))))
	h.mknod(name, n)
}

func (h *host) mknod(name string, n int) {
	h.t.Helper()
	err := unix.Mknod(filepath.Join(h.root, "dev", name), unix.S_IFBLK|0o600, int(unix.Mkdev(253, uint32(n))))
	if err != nil {
		h.t.Skipf("cannot make device nodes: %v", err)
	}
}

func (h *host) link(n int) {
	h.t.Helper()
	h.must(os.Symlink(fmt.Sprintf("../dm-%d", n), filepath.Join(h.root, "dev/mapper/berth--fast-a0--b1")))
}

func TestFindNode(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		make   func(h *host)
		device string
		err    bool
	}{
		"by name":                         {func(h *host) { h.add(0, otherDM, 8); h.add(1, wantDM, 16); h.link(1) }, "/dev/mapper/berth--fast-a0--b1", false},
		"udev is late":                    {func(h *host) { h.add(0, otherDM, 8); h.add(1, wantDM, 16) }, "/dev/dm-1", false},
		"the name leads elsewhere":        {func(h *host) { h.add(0, otherDM, 8); h.add(1, wantDM, 16); h.link(0) }, "/dev/dm-1", false},
		"the name leads nowhere":          {func(h *host) { h.add(1, wantDM, 16); h.link(7) }, "/dev/dm-1", false},
		"inactive":                        {func(h *host) { h.add(0, otherDM, 8) }, "", false},
		"inactive, its name is another's": {func(h *host) { h.add(0, otherDM, 8); h.link(0) }, "", false},
		"no device-mapper":                {func(*host) {}, "", false},
		"no sysfs":                        {func(h *host) { h.must(os.RemoveAll(filepath.Join(h.root, "sys"))) }, "", true},
		"the kernel's node is not there":  {func(h *host) { h.add(1, wantDM, 16); h.must(os.Remove(filepath.Join(h.root, "dev/dm-1"))) }, "", true},
		"the kernel's node is another one": {func(h *host) {
			h.add(1, wantDM, 16)
			h.must(os.Remove(filepath.Join(h.root, "dev/dm-1")))
			h.mknod("dm-1", 5)
		}, "", true},
		"lvm was killed before it had a table": {func(h *host) { h.add(1, wantDM, 0) }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			test.make(h)
			loc, ok, err := lvm.HostNodes{Root: h.root}.Find(t.Context(), nodeID)
			if (err != nil) != test.err || loc.Device != test.device || ok != (test.device != "") {
				t.Fatalf("Find = %+v, %v, %v, want %q", loc, ok, err, test.device)
			}
			if ok && loc.SizeBytes != 16*512 {
				t.Errorf("its size is %d", loc.SizeBytes)
			}
		})
	}
}

// Only what is named like a leg of the group, has the group's UUID, and is of no volume
// is somebody's leftover.
func TestUnknownLegs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	name := func(n int, text string) {
		h.must(os.WriteFile(filepath.Join(h.root, "sys/block", fmt.Sprintf("dm-%d", n), "dm/name"), []byte(text+"\n"), 0o600))
	}
	const prefix = "LVM-rKzSh7H9BlXy8oAASh1QjQBCN2PANzHA"
	for n, dev := range []struct{ uuid, name string }{
		{wantDM, "berth--fast-a0--b1"},                                              // a volume
		{otherDM, "berth--fast-a0--b1_rmeta_0"},                                     // a leg of it
		{prefix + "00000000000000000000000000000001", "berth--fast-a0--b1_rmeta_2"}, // left over
		{prefix + "00000000000000000000000000000002", "berth--fast-a0--b1_rimage_2"},
		{prefix + "00000000000000000000000000000003", "berth--fast-theirs"},                                 // no leg
		{prefix + "00000000000000000000000000000004-missing_0_0", "berth--fast-a0--b1_rmeta_1-x"},           // of another name
		{prefix + "00000000000000000000000000000006-missing_0_0", "berth--fast-a0--b1_rmeta_1-missing_0_0"}, // stood in for a device
		{prefix + "00000000000000000000000000000007-tpool", "berth--fast-a0--b1_rmeta_1-tpool"},             // another layer
		{prefix + "00000000000000000000000000000005", "other-a0--b1_rmeta_2"},                               // of another name
		{"LVM-0000000000000000000000000000000000000000000000000000000000000001", "berth--fast-a0--b1_rmeta_3"},
		{"CRYPT-LUKS2-x", "berth--fast-a0--b1_rmeta_4"},
	} {
		h.add(n, dev.uuid, 0)
		name(n, dev.name)
	}
	known := func(uuid string) bool { return uuid == lvUUID || uuid == otherUUID }
	got, err := lvm.UnknownLegs(lvm.HostNodes{Root: h.root}, "berth-fast", groupUUID, known)
	want := []string{prefix + "00000000000000000000000000000001", prefix + "00000000000000000000000000000002", prefix + "00000000000000000000000000000006-missing_0_0"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := lvm.UnknownLegs(lvm.HostNodes{Root: h.root}, "a/b", groupUUID, known); err == nil {
		t.Error("a group of no name")
	}
	h.must(os.RemoveAll(filepath.Join(h.root, "sys")))
	if _, err := lvm.UnknownLegs(lvm.HostNodes{Root: h.root}, "berth-fast", groupUUID, known); err == nil {
		t.Error("no sysfs, and yet nothing is wrong")
	}
}

func TestSuspended(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for n, dev := range []struct{ uuid, suspended string }{
		{wantDM, "0"},
		{wantDM + "-missing_0_0", "1"},
		{"CRYPT-LUKS2-x", "1"},
		{otherDM + "-tpool", "1"},
		{otherDM + "-pool", "0"}, // each layer of a thin pool counts
	} {
		h.add(n, dev.uuid, 8)
		for file, text := range map[string]string{"dm/name": "any", "dm/suspended": dev.suspended} {
			h.must(os.WriteFile(filepath.Join(h.root, "sys/block", fmt.Sprintf("dm-%d", n), file), []byte(text+"\n"), 0o600))
		}
	}
	got, err := lvm.HostNodes{Root: h.root}.Suspended(t.Context(), groupUUID)
	if err != nil || len(got) != 2 || got[lvUUID] || !got[otherUUID] {
		t.Errorf("got %v, %v", got, err)
	}
	h.must(os.RemoveAll(filepath.Join(h.root, "sys")))
	if _, err := (lvm.HostNodes{Root: h.root}).Suspended(t.Context(), groupUUID); err == nil {
		t.Error("no sysfs, and yet nothing is wrong")
	}
}

func TestStaleTable(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]bool{"254:160 2048": false, "254:161 2048": true, "254:16 2048": true, "": true} {
		if got := lvm.StaleTable([]dm.Target{{Type: "linear", Status: "254:160 0"}, {Type: "linear", Status: status}}, "254:160"); got != want {
			t.Errorf("on %q: stale %v", status, got)
		}
	}
}
