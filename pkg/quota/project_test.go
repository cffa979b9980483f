// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package quota_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
)

// A filesystem in memory has no quotas of projects.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	dir, err := os.Open("/dev/shm")
	if err != nil {
		t.Skip(err)
	}
	defer dir.Close()
	if err := (quota.Projects{}).Check(int(dir.Fd())); !errors.Is(err, quota.ErrUnsupported) || !strings.Contains(err.Error(), "only xfs and ext4") {
		t.Fatalf("got %v", err)
	}
}

func TestLayoutOfTheKernel(t *testing.T) {
	t.Parallel()
	for name, size := range map[string][2]uintptr{
		"if_dqblk":       {unsafe.Sizeof(quota.DiskQuota{}), 72},
		"fs_quota_statv": {unsafe.Sizeof(quota.State{}), 160},
		"fsxattr":        {unsafe.Sizeof(quota.Attributes{}), 28},
	} {
		if size[0] != size[1] {
			t.Errorf("struct %s has %d bytes, want %d", name, size[0], size[1])
		}
	}
}

// testDiskEnv names a disk that the tests may destroy:
//
//	go test -c ./pkg/quota && BERTH_TEST_DISK=/dev/vdX ./quota.test -test.run Kernel -test.v
const testDiskEnv = "BERTH_TEST_DISK"

// mounted makes a filesystem on the disk and mounts it.
func mounted(t *testing.T, mkfs []string, options string) string {
	t.Helper()
	disk, _, _ := strings.Cut(os.Getenv(testDiskEnv), ",")
	if disk == "" || os.Geteuid() != 0 {
		t.Skipf("needs root and a disk to destroy, named by %s", testDiskEnv)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], disk)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", mkfs, err, out)
	}
	where, fsType := t.TempDir(), strings.TrimPrefix(mkfs[0], "mkfs.")
	if err := unix.Mount(disk, where, fsType, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(where, 0); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("wipefs", "--all", disk).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return where
}

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

var (
	xfs  = []string{"mkfs.xfs", "-f", "-q"}
	ext4 = []string{"mkfs.ext4", "-F", "-q", "-O", "project,quota"}
)

func TestKernelLimits(t *testing.T) {
	for name, mkfs := range map[string][]string{"xfs": xfs, "ext4": ext4} {
		t.Run(name, func(t *testing.T) { limits(t, mounted(t, mkfs, "prjquota")) })
	}
}

// limits gives two directories a project each, and writes beyond the limit of one.
func limits(t *testing.T, root string) {
	var p quota.Projects
	const project, limitBytes = 1 << 30, 8 << 20
	rootFD := open(t, root)
	if err := p.Check(rootFD); err != nil {
		t.Fatal(err)
	}
	if u, err := p.Usage(rootFD, project); err != nil || u != (quota.Usage{}) {
		t.Fatalf("before anything: %+v, %v", u, err)
	}
	for n, dir := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		fd := open(t, filepath.Join(root, dir))
		for range 2 { // repeated
			if err := p.SetLimit(rootFD, project+uint32(n), limitBytes); err != nil {
				t.Fatal(err)
			}
			if err := p.Assign(fd, project+uint32(n)); err != nil {
				t.Fatal(err)
			}
		}
		if got, inherited, err := p.ProjectOf(fd); err != nil || got != project+uint32(n) || !inherited {
			t.Fatalf("it is of project %d, inherited %t, %v", got, inherited, err)
		}
	}
	below := filepath.Join(root, "one", "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	unlimited(t)
	err := fill(filepath.Join(below, "file"), limitBytes+1<<20)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Fatalf("written beyond the limit: %v", err)
	}
	if err := fill(filepath.Join(root, "two", "file"), 4<<20); err != nil {
		t.Fatalf("the neighbour: %v", err)
	}
	u, err := p.Usage(rootFD, project)
	if err != nil || u.LimitBytes != limitBytes || u.UsedBytes > limitBytes || u.UsedBytes < limitBytes/2 || u.Inodes < 3 {
		t.Fatalf("%+v, %v", u, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Join(root, "one"), &fs); err != nil || int64(fs.Blocks)*fs.Bsize != limitBytes {
		t.Fatalf("df shows %d bytes, %v", int64(fs.Blocks)*fs.Bsize, err)
	}

	if err := p.SetLimit(rootFD, project, 2*limitBytes); err != nil {
		t.Fatal(err)
	}
	if err := fill(filepath.Join(below, "file"), limitBytes+1<<20); err != nil {
		t.Fatalf("after it grew: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(root, "one")); err != nil {
		t.Fatal(err)
	}
	if err := p.SetLimit(rootFD, project, 0); err != nil {
		t.Fatal(err)
	}
	if u, err := p.Usage(rootFD, project); err != nil || u.LimitBytes != 0 {
		t.Fatalf("after it was given up: %+v, %v", u, err)
	}
	if err := p.SetLimit(rootFD, 0, limitBytes); err == nil {
		t.Fatal("all that is of no project was limited")
	}
}

// unlimited takes CAP_SYS_RESOURCE away, which no container has by itself: ext4 does not limit
// who has it.
func unlimited(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // a thread has capabilities, not a process
	t.Cleanup(runtime.UnlockOSThread)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	before := data
	data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Capset(&header, &before[0]) })
}

func fill(path string, bytes int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 1<<20)
	for range bytes / len(block) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func TestKernelUnsupported(t *testing.T) {
	for name, tc := range map[string]struct {
		mkfs          []string
		options, says string
	}{
		"xfs without the option":    {xfs, "", "prjquota"},
		"ext4 without the option":   {ext4, "", "prjquota"},
		"ext4 without the features": {[]string{"mkfs.ext4", "-F", "-q"}, "", "tune2fs"},
		"btrfs":                     {[]string{"mkfs.btrfs", "-f", "-q"}, "", "only xfs and ext4"},
	} {
		t.Run(name, func(t *testing.T) {
			root := mounted(t, tc.mkfs, tc.options)
			if err := (quota.Projects{}).Check(open(t, root)); !errors.Is(err, quota.ErrUnsupported) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %v", err)
			}
		})
	}
}
