// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// subvolumeID is the number of a volume's subvolume.
func subvolumeID(t *testing.T, dir string) (id uint64) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	id, err = btrfs.Subvolumes{}.ID(fd)
	must(t, err)
	return id
}

// groupOf is what the kernel counts for a subvolume of the filesystem that a path is on.
func groupOf(t *testing.T, where string, id uint64) quota.Usage {
	t.Helper()
	unix.Sync() // it counts what is committed
	dir, err := os.Open(where)
	must(t, err)
	defer dir.Close()
	u, err := btrfs.Groups{}.Usage(int(dir.Fd()), id)
	must(t, err)
	return u
}

// btrfsTool runs btrfs(8), as an operator does.
func btrfsTool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "btrfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("btrfs %v: %v: %s", args, err, out)
	}
}

// await waits until something is so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline, tick := time.After(2*time.Minute), time.Tick(100*time.Millisecond); !is(); {
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Writing past the size fails with EDQUOT, and does nothing to the neighbour; a snapshot takes
// nothing of what its volume may write; growth gives room while the volume is used; what is
// deleted leaves no group.
func TestKernelGroups(t *testing.T) {
	p := kernelPool(t, kernelReflinks["qgroups"]...)
	must(t, p.backend.Limits(t.Context()))
	one, two := create(t, p, 1, 16*mib), create(t, p, 2, 8*mib)
	inOne := p.dirOf(one)
	file := path.Join(inOne, "file")
	if err := fill(file, 17); !errors.Is(err, unix.EDQUOT) {
		t.Fatalf("past the size: %v", err)
	}
	must(t, fill(path.Join(p.dirOf(two), "file"), 6))
	if err := os.WriteFile(path.Join(inOne, "more"), make([]byte, mib), 0o600); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("where nothing is left: %v", err)
	}
	must(t, os.Remove(file)) // with nothing left
	must(t, fill(file, 10))

	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, one))
	must(t, err)
	must(t, os.Remove(file))
	must(t, fill(file, 14))
	id := subvolumeID(t, inOne)
	if u := groupOf(t, p.root, id); u.LimitBytes != 16*mib || u.UsedBytes < 14*mib || u.UsedBytes > 15*mib {
		t.Errorf("a volume of which there is a snapshot: %+v", u)
	}
	if u := groupOf(t, p.root, subvolumeID(t, p.dirOf(snap))); u.LimitBytes != 16*mib || u.UsedBytes < 10*mib || u.UsedBytes > 11*mib {
		t.Errorf("its snapshot: %+v", u)
	}

	open, err := os.OpenFile(path.Join(inOne, "open"), os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	defer open.Close()
	if err := fill(path.Join(inOne, "full"), 4); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("past the size again: %v", err)
	}
	_, err = p.backend.Grow(t.Context(), volumetest.ID(1), one, 24*mib) // with nothing left
	must(t, err)
	_, err = open.Write(make([]byte, 6*mib))
	must(t, errors.Join(err, open.Close()))
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &one, volume.WipeNone))
	p.settle(t)
	await(t, "the group is gone", func() bool {
		p.backend.Kick()
		notes, err := os.ReadDir(path.Join(p.root, ".berth/qgroups"))
		must(t, err)
		return groupOf(t, p.root, id) == quota.Usage{} && len(notes) == 0
	})
	out, err := exec.CommandContext(t.Context(), "btrfs", "qgroup", "show", "--raw", p.root).Output()
	must(t, err)
	if strings.Contains(string(out), fmt.Sprintf("0/%d ", id)) || strings.Contains(string(out), "stale") {
		t.Errorf("groups that are left:\n%s", out)
	}
	// What the snapshot shared with the volume is its own now.
	if u := groupOf(t, p.root, subvolumeID(t, p.dirOf(snap))); u.UsedBytes < 10*mib {
		t.Errorf("the snapshot without its volume: %+v", u)
	}
}

// An operator switches quotas on, off and to the simple ones while there are volumes.
func TestKernelGroupsOfOperators(t *testing.T) {
	p := kernelPool(t, kernelReflinks["btrfs"]...)
	wantNone := func(when, says string, uncounted bool) {
		t.Helper()
		unix.Sync()
		err := p.backend.Limits(t.Context())
		if !errors.Is(err, quota.ErrUnsupported) || errors.Is(err, quota.ErrUncounted) != uncounted || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: Limits = %v", when, err)
		}
	}
	wantNone("at first", "btrfs quota enable", false)
	before, err := p.backend.Create(t.Context(), spec(1, 8*mib))
	must(t, err)
	must(t, fill(path.Join(p.dirOf(before), "file"), 10))

	btrfsTool(t, "quota", "enable", p.root)
	btrfsTool(t, "quota", "rescan", "-w", p.root)
	must(t, p.backend.Limits(t.Context()))
	rec := create(t, p, 2, 8*mib)
	idBefore, id := subvolumeID(t, p.dirOf(before)), subvolumeID(t, p.dirOf(rec))
	if u := groupOf(t, p.root, idBefore); u.LimitBytes != 0 || u.UsedBytes < 10*mib {
		t.Errorf("a volume that was made before: %+v", u)
	}
	if u := groupOf(t, p.root, id); u.LimitBytes != 8*mib {
		t.Errorf("a volume that was made since: %+v", u)
	}

	btrfsTool(t, "quota", "disable", p.root)
	wantNone("off again", "btrfs quota enable", false)
	must(t, fill(path.Join(p.dirOf(rec), "file"), 10))
	btrfsTool(t, "quota", "enable", p.root)
	btrfsTool(t, "quota", "rescan", "-w", p.root)
	must(t, p.backend.Limits(t.Context()))
	await(t, "it is limited again", func() bool { return groupOf(t, p.root, id).LimitBytes == 8*mib })
	if u := groupOf(t, p.root, idBefore); u.LimitBytes != 0 {
		t.Errorf("a volume that was made before: %+v", u)
	}
	if err := fill(path.Join(p.dirOf(rec), "more"), 1); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("past the size: %v", err)
	}

	// What is shared cannot be moved to another group without counting anew.
	_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 2, rec))
	must(t, err)
	btrfsTool(t, "qgroup", "create", "1/7", p.root)
	out, _ := exec.CommandContext(t.Context(), "btrfs", "qgroup", "assign", "--no-rescan", fmt.Sprintf("0/%d", id), "1/7", p.root).CombinedOutput()
	t.Logf("%s", out)
	wantNone("out of date", "btrfs quota rescan", true)
	made, err := p.backend.Create(t.Context(), spec(3, 4*mib))
	must(t, err)
	btrfsTool(t, "quota", "rescan", "-w", p.root)
	must(t, p.backend.Limits(t.Context()))
	if u := groupOf(t, p.root, subvolumeID(t, p.dirOf(made))); u.LimitBytes != 4*mib {
		t.Errorf("a volume that was made meanwhile: %+v", u)
	}

	btrfsTool(t, "quota", "disable", p.root)
	btrfsTool(t, "quota", "enable", "--simple", p.root)
	wantNone("with simple quotas", "simple quotas", false)
}

// A subvolume with data is limited as it is adopted; a directory is not.
func TestKernelGroupsOfAdopted(t *testing.T) {
	p := kernelPool(t, kernelReflinks["qgroups"]...)
	sub := path.Join(path.Dir(p.root), "sub")
	btrfsTool(t, "subvolume", "create", sub)
	must(t, fill(path.Join(sub, "file"), 5))
	unix.Sync()
	if _, err := adopt(t, p, 1, sub, 5*mib); !errors.Is(err, volume.ErrNotAdoptable) {
		t.Fatalf("of more than its size: %v", err)
	}
	rec, err := adopt(t, p, 1, sub, 8*mib)
	must(t, err)
	if err := fill(path.Join(p.dirOf(rec), "more"), 4); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("past the size: %v", err)
	}
	dir := path.Join(path.Dir(p.root), "dir")
	must(t, os.Mkdir(dir, 0o755))
	limited := spec(2, 8*mib)
	limited.Limited = true
	if _, err := p.backend.Adopt(t.Context(), limited, volume.Adoption{Directory: dir}); !errors.Is(err, volume.ErrNotAdoptable) {
		t.Errorf("a directory that must be limited: %v", err)
	}
}
