// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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
		"no size": {func(h *host) { h.add(1, wantDM, 0) }, "", true},
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
