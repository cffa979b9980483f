// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mounttest gives tests real block devices and a mount namespace of their
// own, so that nothing they mount outlives them.
package mounttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostexec"
)

const insideVariable = "BERTH_TEST_IN_MOUNT_NAMESPACE"

// Main runs the tests of a package in a mount namespace of their own, when root
// runs them: it starts the test binary once more in one. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(mounttest.Main(m)) }
func Main(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv(insideVariable) != "" {
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	// With CLONE_NEWNS here the syscall package makes every mount private first.
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "run the tests in a mount namespace:", err)
	return 1
}

// RequireRoot skips a test that needs root, and fails one whose package does not
// run in a namespace of its own.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches loop devices and mounts them")
	}
	if os.Getenv(insideVariable) == "" {
		t.Fatal("this package lacks mounttest.Main")
	}
}

// RequireCapability skips a test that needs a capability which the environment
// took away, even from root.
func RequireCapability(t testing.TB, capability int, name string) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	if data[capability/32].Effective&(1<<(capability%32)) == 0 {
		t.Skipf("needs %s, which this environment does not give to root", name)
	}
}

// Loop is a block device made of a sparse file. The kernel detaches it when the
// test ends, also when the test is killed.
type Loop struct {
	// Path of the block device.
	Path string
	// File is the backing file's path.
	File string

	device *os.File
}

// LoopDevice attaches a new, blank loop device.
func LoopDevice(t testing.TB, sizeBytes int64) *Loop {
	t.Helper()
	RequireRoot(t)
	file := filepath.Join(t.TempDir(), "disk.img")
	backing, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	if err := backing.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	loop, err := attach(backing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loop.Detach)
	return loop
}

// Attach makes a block device of a file that is there. Detach it, or end the
// process.
func Attach(file string) (*Loop, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	return attach(backing)
}

// attach tries until a free device was taken: others may look for one too.
func attach(backing *os.File) (*Loop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		// Detached by the kernel when nobody has it open or mounted any more.
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:], backing.Name())
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return &Loop{Path: path, File: backing.Name(), device: device}, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s: %w", path, err)
		}
	}
	return nil, errors.New("no loop device could be attached")
}

// Detach gives the device back. It goes when nobody has it mounted any more.
func (l *Loop) Detach() { _ = l.device.Close() }

// Resize makes the device larger.
func (l *Loop) Resize(t testing.TB, sizeBytes int64) {
	t.Helper()
	if err := os.Truncate(l.File, sizeBytes); err != nil {
		t.Fatal(err)
	}
	if err := l.Refresh(); err != nil {
		t.Fatal(err)
	}
}

// Refresh gives the device the size that its file has by now.
func (l *Loop) Refresh() error {
	if err := unix.IoctlSetInt(int(l.device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize %s: %w", l.Path, err)
	}
	return nil
}

// Unmount takes away everything mounted at a path when the test ends.
func Unmount(t testing.TB, path string) {
	t.Helper()
	t.Cleanup(func() {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
}

// Here is the host that the test itself runs on.
func Here(t testing.TB) *hostexec.Host {
	t.Helper()
	h, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Elsewhere is a host in other mount, ipc, uts and net namespaces than the test,
// as the node is for the agent, and the process that holds them.
func Elsewhere(t testing.TB) (h *hostexec.Host, pid int) {
	t.Helper()
	RequireRoot(t)
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &unix.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	h, err := hostexec.New(hostexec.Options{HostRoot: fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h, cmd.Process.Pid
}
