// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// The tests below need a disk that they may destroy:
//
//	go test -c ./pkg/hostpath && BERTH_TEST_DISK=/dev/vdX ./hostpath.test -test.run Kernel -test.v
const testDiskEnv = "BERTH_TEST_DISK"

// kernelPool is a root on a filesystem of its own, made by mkfs and mounted with prjquota.
func kernelPool(t *testing.T, mkfs ...string) *pool {
	t.Helper()
	disk, _, _ := strings.Cut(os.Getenv(testDiskEnv), ",")
	if disk == "" || os.Geteuid() != 0 {
		t.Skipf("needs root and a disk to destroy, named by %s", testDiskEnv)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], disk)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", mkfs, err, out)
	}
	where := t.TempDir()
	options := "prjquota"
	if mkfs[0] == "mkfs.btrfs" {
		options = ""
	}
	filesystem := strings.TrimPrefix(mkfs[0], "mkfs.")
	err := unix.Mount(disk, where, filesystem, 0, options)
	if errors.Is(err, unix.EINVAL) {
		t.Log("the kernel has no project quotas")
		err = unix.Mount(disk, where, filesystem, 0, "")
	}
	must(t, err)
	t.Cleanup(func() {
		if err := unix.Unmount(where, 0); err != nil {
			t.Error(err)
		}
		if out, err := exec.CommandContext(context.Background(), "wipefs", "--all", disk).CombinedOutput(); err != nil {
			t.Errorf("wipefs: %v: %s", err, out)
		}
	})
	shares := mkfs[0] != "mkfs.ext4"
	return startPool(t, &pool{root: path.Join(where, "pool"), used: map[string]bool{}, copies: shares, realCopies: shares})
}

var kernelFilesystems = map[string][]string{
	"xfs":  {"mkfs.xfs", "-f", "-q"},
	"ext4": {"mkfs.ext4", "-F", "-q", "-O", "project,quota"},
}

// kernelUUIDs are those whose UUID the kernel tells.
var kernelUUIDs = map[string][]string{
	"xfs":   kernelFilesystems["xfs"],
	"ext4":  kernelFilesystems["ext4"],
	"btrfs": {"mkfs.btrfs", "-f", "-q"},
}

// kernelReflinks are those that share blocks.
var kernelReflinks = map[string][]string{
	"xfs":   kernelFilesystems["xfs"],
	"btrfs": {"mkfs.btrfs", "-f", "-q"},

	"qgroups": {"mkfs.btrfs", "-f", "-q", "-O", "quota"},
}

// The suite of all backends over real quotas.
func TestKernelConformance(t *testing.T) {
	for name, mkfs := range kernelFilesystems {
		t.Run(name, func(t *testing.T) { conform(t, func(t *testing.T) *pool { return kernelPool(t, mkfs...) }) })
	}
	t.Run("btrfs", func(t *testing.T) {
		conform(t, func(t *testing.T) *pool { return kernelPool(t, kernelReflinks["btrfs"]...) })
	})
	t.Run("qgroups", func(t *testing.T) {
		conform(t, func(t *testing.T) *pool { return kernelPool(t, kernelReflinks["qgroups"]...) })
	})
}

// A snapshot takes no room for what it has in common with its volume, and is kept to its size
// with all of it; so is what is made of it, which changes nothing in the snapshot.
func TestKernelCopies(t *testing.T) {
	for name, mkfs := range kernelReflinks {
		t.Run(name, func(t *testing.T) {
			p := kernelPool(t, mkfs...)
			instant, err := p.backend.Copies(t.Context())
			if err != nil || instant != (name != "xfs") {
				t.Fatalf("copies at one instant: %t, %v", instant, err)
			}
			limited := p.backend.Limits(t.Context()) == nil
			rec, err := p.backend.Create(t.Context(), spec(1, 12*mib))
			must(t, err)
			dir := p.dirOf(rec)
			must(t, os.Mkdir(path.Join(dir, "below"), 0o755))
			fillWithEverything(t, dir)
			must(t, fill(path.Join(dir, "large"), 10))
			unix.Sync()
			before, free := describe(t, dir), freeBytes(t, p.root)
			snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			must(t, err)
			must(t, os.Truncate(path.Join(dir, "large"), 1))
			larger := copyOf(2, 5, snap, true)
			larger.SizeBytes = 16 * mib
			restored, err := p.backend.Create(t.Context(), larger)
			must(t, err)
			for _, copied := range []volume.Record{snap, restored} {
				if got := describe(t, p.dirOf(copied)); got != before {
					t.Errorf("%s is\n%s\nwant\n%s", copied.Hostpath.Directory, got, before)
				}
			}
			unix.Sync()
			if taken := free - freeBytes(t, p.root); taken > 4*mib {
				t.Errorf("two copies of 10 MiB took %d bytes", taken)
			}
			if !limited {
				return
			}
			giveUpResources(t)
			inCopy := path.Join(p.dirOf(restored), "more")
			must(t, fill(inCopy, 3))
			if err := fill(inCopy, 8); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				t.Errorf("past the size of the copy: %v", err)
			}
			c, err := p.backend.Capacity(t.Context())
			must(t, err)
			if c.AllocatedBytes != (12+12+16)*mib {
				t.Errorf("allocated are %d bytes", c.AllocatedBytes)
			}
		})
	}
}

// Volumes of a btrfs are subvolumes: they are copied while they are written to, told from their
// copies, and removed with what pods have made in them.
func TestKernelSubvolumes(t *testing.T) {
	p := kernelPool(t, kernelReflinks["btrfs"]...)
	p.named = true
	rec, err := asking{p.backend, p}.Create(t.Context(), spec(1, 16*mib))
	must(t, err)
	dir := p.dirOf(rec)
	if is, err := isSubvolume(dir); err != nil || !is {
		t.Fatalf("a volume is a subvolume: %t, %v", is, err)
	}
	p.write(dir, true)
	writeFile(t, path.Join(dir, "file"), "one")
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	writeFile(t, path.Join(dir, "file"), "two")
	if got, err := os.ReadFile(path.Join(p.dirOf(snap), "file")); err != nil || string(got) != "one" {
		t.Errorf("the snapshot holds %q, %v", got, err)
	}
	free := freeBytes(t, p.root)
	must(t, fill(path.Join(dir, "large"), 30))

	// A copy has the inode number and the times of what it was copied of.
	away := path.Join(p.root, "away")
	must(t, os.Rename(dir, away))
	must(t, os.Rename(p.dirOf(snap), dir))
	if _, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Locate where a copy was put in its place = %v, want ErrIdentity", err)
	}
	must(t, os.Rename(dir, p.dirOf(snap)))
	must(t, os.Rename(away, dir))

	script := `cd "$1" && btrfs subvolume create a && btrfs subvolume create a/b && echo x >a/b/file && btrfs subvolume snapshot -r a/b a/c && mkdir d && btrfs subvolume snapshot -r a d/e && btrfs property set -ts a ro true`
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("make subvolumes in a volume: %v: %s", err, out)
	}
	if _, err := p.backend.Snapshot(t.Context(), snapshotSpec(6, 1, rec)); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Snapshot of a volume with subvolumes in it = %v, want ErrInvalid", err)
	}
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	p.settle(t)
	// btrfs gives room back in the background, after the next transaction.
	for deadline, tick := time.After(time.Minute), time.Tick(100*time.Millisecond); ; {
		unix.Sync()
		if freeBytes(t, p.root) > free-8*mib {
			break
		}
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("free are %d bytes of %d", freeBytes(t, p.root), free)
		}
	}
}

func isSubvolume(dir string) (bool, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return btrfs.Subvolumes{}.Is(fd)
}

func freeBytes(t *testing.T, where string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(where, &st))
	return int64(st.Bavail) * st.Bsize
}

// A volume is written to by who has it mounted, unless that is read-only.
func TestKernelWritten(t *testing.T) {
	p := kernelPool(t, kernelReflinks["btrfs"]...)
	rec, err := p.backend.Create(t.Context(), spec(1, mib))
	must(t, err)
	pod := t.TempDir()
	want := func(when string, want bool) {
		t.Helper()
		if got, err := hostpath.HostMounts("").Written(p.dirOf(rec)); err != nil || got != want {
			t.Errorf("%s: written %t, %v", when, got, err)
		}
	}
	want("not mounted", false)
	mountBind(t, p.dirOf(rec), pod)
	want("mounted", true)
	must(t, unix.Mount("", pod, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	want("mounted read-only", false)
	must(t, unix.Unmount(pod, 0))
}

// Writing past the size fails, and does nothing to the neighbour; growth gives room while the
// volume is used; what is deleted does not count any more.
func TestKernelQuota(t *testing.T) {
	for name, mkfs := range kernelFilesystems {
		t.Run(name, func(t *testing.T) {
			p := kernelPool(t, mkfs...)
			must(t, p.backend.Limits(t.Context()))
			one, two := create(t, p, 1, 8*mib), create(t, p, 2, 8*mib)
			inOne, inTwo := path.Join(p.root, one.Hostpath.Directory), path.Join(p.root, two.Hostpath.Directory)
			giveUpResources(t)
			must(t, os.Mkdir(path.Join(inOne, "below"), 0o755))
			file := path.Join(inOne, "below", "file")
			if err := fill(file, 9); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				t.Fatalf("past the size: %v", err)
			}
			must(t, fill(path.Join(inTwo, "file"), 6))
			var st unix.Statfs_t
			must(t, unix.Statfs(inOne, &st))
			if size := int64(st.Blocks) * st.Bsize; size != 8*mib || st.Bavail*uint64(st.Bsize) > mib {
				t.Fatalf("df shows %d bytes, %d blocks of which are free", size, st.Bavail)
			}
			_, err := p.backend.Grow(t.Context(), volumetest.ID(1), one, 12*mib)
			must(t, err)
			must(t, fill(file, 10))

			dir, err := os.Open(p.root)
			must(t, err)
			defer dir.Close()
			vol, err := os.Open(inOne)
			must(t, err)
			project, inherited, err := (quota.Projects{}).ProjectOf(int(vol.Fd()))
			must(t, errors.Join(err, vol.Close()))
			if project == 0 || !inherited {
				t.Fatalf("project %d, inherited %t", project, inherited)
			}
			must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &one, volume.WipeNone))
			p.settle(t)
			// xfs lets inodes go in the background.
			for deadline, tick := time.After(time.Minute), time.Tick(10*time.Millisecond); ; {
				u, err := (quota.Projects{}).Usage(int(dir.Fd()), project)
				must(t, err)
				if u == (quota.Usage{}) {
					break
				}
				select {
				case <-tick:
				case <-deadline:
					t.Fatalf("of a deleted volume: %+v", u)
				}
			}
		})
	}
}

// A directory with data is counted as a whole and ends at its size, whatever project its files
// had before; one that holds more is left as it is.
func TestKernelAdopt(t *testing.T) {
	for name, mkfs := range kernelFilesystems {
		t.Run(name, func(t *testing.T) {
			p := kernelPool(t, mkfs...)
			dir := handed(t, p)
			must(t, fill(path.Join(dir, "a/b/large"), 5))
			top, err := os.Open(dir)
			must(t, err)
			must(t, errors.Join((quota.Projects{}).Assign(int(top.Fd()), 7), top.Close()))
			content, was := snapshot(t, dir), inode(t, dir)
			if _, err := adopt(t, p, 1, dir, 5*mib); !errors.Is(err, volume.ErrNotAdoptable) {
				t.Fatalf("of more than its size: %v", err)
			}
			rec, err := adopt(t, p, 1, dir, 8*mib)
			must(t, err)
			at := path.Join(p.root, rec.Hostpath.Directory)
			if snapshot(t, at) != content || inode(t, at) != was {
				t.Fatalf("it holds\n%s\nand held\n%s", snapshot(t, at), content)
			}
			vol, err := os.Open(at)
			must(t, err)
			defer vol.Close()
			project, inherited, err := (quota.Projects{}).ProjectOf(int(vol.Fd()))
			must(t, err)
			u, err := (quota.Projects{}).Usage(int(vol.Fd()), project)
			must(t, err)
			// The directory and a, a/b, a/b/c; file (which is a/hard, too), a/b/c/file and
			// a/b/large; no link and no pipe.
			if !inherited || u.LimitBytes != 8*mib || u.Inodes != 4+3 || u.UsedBytes < 5*mib || u.UsedBytes > 6*mib {
				t.Fatalf("project %d, inherited %t: %+v", project, inherited, u)
			}
			giveUpResources(t)
			if err := fill(path.Join(at, "a/more"), 4); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				t.Fatalf("past the size: %v", err)
			}
			must(t, os.Remove(path.Join(at, "a/more")))
			for from, to := range map[string]string{"a/link": "link", "pipe": "a/pipe", "file": "a/file"} {
				if err := os.Rename(path.Join(at, from), path.Join(at, to)); err != nil {
					if !errors.Is(err, unix.EXDEV) || from == "file" {
						t.Errorf("rename of what was there before: %v", err)
					}
				}
			}
			must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
			all := kept(t, p)
			if len(all) != 1 || inode(t, all[0].Directory) != was || all[0].UsedBytes < 5*mib {
				t.Fatalf("deleted: %+v", all)
			}
		})
	}
}

// giveUpResources takes CAP_SYS_RESOURCE away, which no container has by itself: ext4 does not
// limit who has it.
func giveUpResources(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&header, &data[0]))
	before := data
	data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	must(t, unix.Capset(&header, &data[0]))
	t.Cleanup(func() { _ = unix.Capset(&header, &before[0]) })
}

func fill(name string, mebibytes int) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, mib)
	for range mebibytes {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}
