// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

const otherPool = "b0000000-0000-4000-8000-00000000b002"

func poolHost(t *testing.T) (*lvmtest.Host, lvm.GroupSpec) {
	t.Helper()
	h := lvmtest.NewHost(t)
	h.AddDisk("/dev/vdb", 64*mib, "")
	h.AddDisk("/dev/vdc", 64*mib, "")
	h.AddDisk("/dev/vdd", 64*mib, "ext4")
	return h, lvm.GroupSpec{Name: "berth-fast", PoolUID: lvmtest.PoolUID, PoolSet: "fast", Devices: []string{"/dev/vdb", "/dev/vdc"}}
}

func TestCreateGroup(t *testing.T) {
	t.Parallel()
	h, spec := poolHost(t)
	client := lvm.NewClient(h.Runner(), h.Flush)
	g, err := client.CreateGroup(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.CreateGroup(t.Context(), spec)
	if err != nil || again.UUID != g.UUID || len(again.PVs) != 2 {
		t.Errorf("CreateGroup again = %+v, %v", again, err)
	}
	for _, command := range h.Commands() {
		for _, forced := range []string{" -y", " --yes", " -f", " --force", " -ff"} {
			if strings.Contains(command+" ", forced+" ") {
				t.Errorf("a pool was made by force: %s", command)
			}
		}
	}
	other := spec
	other.PoolUID = otherPool
	if _, err := client.CreateGroup(t.Context(), other); !errors.Is(err, volume.ErrExists) {
		t.Errorf("CreateGroup of a name that is taken = %v, want ErrExists", err)
	}
	other.Name = "berth-slow"
	if _, err := client.CreateGroup(t.Context(), other); !errors.Is(err, volume.ErrExists) {
		t.Errorf("CreateGroup on devices that are taken = %v, want ErrExists", err)
	}
	if err := client.RemoveGroup(t.Context(), g.UUID, otherPool, nil); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("RemoveGroup of another pool's group = %v, want ErrIdentity", err)
	}
	for range 2 {
		if err := client.RemoveGroup(t.Context(), g.UUID, spec.PoolUID, nil); err != nil {
			t.Errorf("RemoveGroup: %v", err)
		}
	}
	if s := h.Signature("/dev/vdb") + h.Signature("/dev/vdc"); s != "" {
		t.Errorf("the disks hold %s", s)
	}
	if _, err := client.FindGroup(t.Context(), spec.PoolUID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("FindGroup = %v, want ErrNotFound", err)
	}
}

// Content that is not ours is never touched.
func TestCreateGroupForeign(t *testing.T) {
	t.Parallel()
	h, spec := poolHost(t)
	client := lvm.NewClient(h.Runner(), h.Flush)
	spec.Devices = []string{"/dev/vdb", "/dev/vdd"}
	if _, err := client.CreateGroup(t.Context(), spec); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("CreateGroup = %v, want ErrNotBlank", err)
	}
	if h.Signature("/dev/vdd") != "ext4" {
		t.Error("the foreign disk was changed")
	}
	// The blank disk was prepared; another pool does not take it, ours does.
	other := spec
	other.PoolUID, other.Name, other.Devices = otherPool, "other", []string{"/dev/vdb"}
	if _, err := client.CreateGroup(t.Context(), other); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("CreateGroup on a physical volume that another pool prepared = %v, want ErrNotBlank", err)
	}
	spec.Devices = []string{"/dev/vdb"}
	if _, err := client.CreateGroup(t.Context(), spec); err != nil {
		t.Errorf("CreateGroup on the disk prepared before: %v", err)
	}
}

func TestExtendGroup(t *testing.T) {
	t.Parallel()
	h, spec := poolHost(t)
	client := lvm.NewClient(h.Runner(), h.Flush)
	first := spec
	first.Devices = spec.Devices[:1]
	g, err := client.CreateGroup(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		grown, err := client.ExtendGroup(t.Context(), g.UUID, spec)
		if err != nil || grown.UUID != g.UUID || grown.Extents != 2*g.Extents {
			t.Errorf("ExtendGroup = %+v, %v", grown, err)
		}
	}
	spec.Devices = append(spec.Devices, "/dev/vdd")
	if _, err := client.ExtendGroup(t.Context(), g.UUID, spec); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("ExtendGroup by a foreign disk = %v, want ErrNotBlank", err)
	}
	spec.Devices, spec.PoolUID = []string{"/dev/vdc"}, otherPool
	if _, err := client.ExtendGroup(t.Context(), g.UUID, spec); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("ExtendGroup of another pool's group = %v, want ErrIdentity", err)
	}
}

func TestGroupSpecInvalid(t *testing.T) {
	t.Parallel()
	h, good := poolHost(t)
	client := lvm.NewClient(h.Runner(), h.Flush)
	for name, change := range map[string]func(*lvm.GroupSpec){
		"a name with a slash":    func(s *lvm.GroupSpec) { s.Name = "a/b" },
		"an option as name":      func(s *lvm.GroupSpec) { s.Name = "--force" },
		"no pool":                func(s *lvm.GroupSpec) { s.PoolUID = "" },
		"no device":              func(s *lvm.GroupSpec) { s.Devices = nil },
		"an option as device":    func(s *lvm.GroupSpec) { s.Devices = []string{"--force"} },
		"a file as device":       func(s *lvm.GroupSpec) { s.Devices = []string{"/etc/passwd"} },
		"extents of 3 MiB":       func(s *lvm.GroupSpec) { s.ExtentBytes = 3 << 20 },
		"a device up the ladder": func(s *lvm.GroupSpec) { s.Devices = []string{"/dev/../etc/passwd"} },
	} {
		spec := good
		change(&spec)
		if _, err := client.CreateGroup(t.Context(), spec); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("CreateGroup with %s = %v, want ErrInvalid", name, err)
		}
	}
	if n := len(h.Commands()); n != 0 {
		t.Errorf("%d commands were given", n)
	}
}

// The pool's commands go wrong in every way, and the call repeated converges.
func TestPoolFaultMatrix(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"pvcreate", "vgcreate", "vgextend", "vgremove", "pvremove", "lvs", "pvs"} {
		for _, mode := range lvmtest.Modes() {
			t.Run(fmt.Sprintf("%s %s", command, mode), func(t *testing.T) {
				t.Parallel()
				h, spec := poolHost(t)
				client := lvm.NewClient(h.Runner(), h.Flush)
				h.Inject(lvmtest.Fault{Command: command, Mode: mode})
				first := spec
				first.Devices = spec.Devices[:1]
				var g *lvm.Group
				var err error
				for range 3 {
					if g, err = client.CreateGroup(t.Context(), first); err == nil {
						break
					}
				}
				if err != nil {
					t.Fatalf("CreateGroup does not converge: %v", err)
				}
				for range 3 {
					if _, err = client.ExtendGroup(t.Context(), g.UUID, spec); err == nil {
						break
					}
				}
				if err != nil {
					t.Fatalf("ExtendGroup does not converge: %v", err)
				}
				if found, err := client.FindGroup(t.Context(), spec.PoolUID); err != nil || found.UUID != g.UUID || len(found.PVs) != 2 {
					t.Fatalf("FindGroup = %+v, %v", found, err)
				}
				for range 3 {
					if err = client.RemoveGroup(t.Context(), g.UUID, spec.PoolUID, nil); err == nil {
						break
					}
				}
				if err != nil {
					t.Fatalf("RemoveGroup does not converge: %v", err)
				}
				if s := h.Signature("/dev/vdb") + h.Signature("/dev/vdc") + h.Signature("/dev/vdd"); s != "ext4" {
					t.Errorf("the disks hold %s", s)
				}
			})
		}
	}
}
