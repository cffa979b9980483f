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
	must(t, unix.Mount(disk, where, strings.TrimPrefix(mkfs[0], "mkfs."), 0, "prjquota"))
	t.Cleanup(func() {
		if err := unix.Unmount(where, 0); err != nil {
			t.Error(err)
		}
		if out, err := exec.CommandContext(context.Background(), "wipefs", "--all", disk).CombinedOutput(); err != nil {
			t.Errorf("wipefs: %v: %s", err, out)
		}
	})
	return startPool(t, &pool{root: path.Join(where, "pool"), used: map[string]bool{}})
}

var kernelFilesystems = map[string][]string{
	"xfs":  {"mkfs.xfs", "-f", "-q"},
	"ext4": {"mkfs.ext4", "-F", "-q", "-O", "project,quota"},
}

// The suite of all backends over real quotas.
func TestKernelConformance(t *testing.T) {
	for name, mkfs := range kernelFilesystems {
		t.Run(name, func(t *testing.T) { conform(t, func(t *testing.T) *pool { return kernelPool(t, mkfs...) }) })
	}
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
