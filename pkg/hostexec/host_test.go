// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// dead reports whether a process is gone or a zombie that nobody reaped yet.
func dead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// otherHost starts a process in namespaces of its own, which stands for the host's
// first process: its hostname is "berth-host" and a file lies on a tmpfs of its own
// at /mnt.
func otherHost(t *testing.T) (*Host, int) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes and enters namespaces")
	}
	script := `set -e
hostname berth-host
mount -t tmpfs berth-host /mnt
echo theirs >/mnt/file
mkdir /mnt/bin
ln -s /mnt/bin/target /mnt/bin/absolute
echo $$
read end`
	cmd := exec.Command("unshare", "--mount", "--ipc", "--uts", "--net", "--propagation", "private", "sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the stand-in for the host did not come up: %v", err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	h, err := New(Options{HostRoot: fmt.Sprintf("/proc/%d/root", pid)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h, pid
}

// namespacesOf returns the links of a /proc/…/ns directory.
func namespacesOf(t *testing.T, proc string) map[string]string {
	t.Helper()
	links := map[string]string{}
	for _, e := range entered {
		l, err := os.Readlink(filepath.Join(proc, "ns", e.name))
		if err != nil {
			t.Fatal(err)
		}
		links[e.name] = l
	}
	return links
}

// strayThreads counts threads of this process outside its namespaces.
func strayThreads(t *testing.T, home map[string]string) (threads, stray int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		link, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns/mnt"))
		if err != nil {
			continue // ended meanwhile
		}
		threads++
		if link != home["mnt"] {
			stray++
		}
	}
	return threads, stray
}

func TestRunOnHost(t *testing.T) {
	h, pid := otherHost(t)
	home := namespacesOf(t, "/proc/self")
	theirs := namespacesOf(t, fmt.Sprintf("/proc/%d", pid))

	for _, e := range entered {
		res, err := h.Run(t.Context(), Command{Name: "readlink", Args: []string{"/proc/self/ns/" + e.name}})
		if err != nil {
			t.Fatal(err)
		}
		got := strings.TrimSpace(string(res.Stdout))
		if got != theirs[e.name] || got == home[e.name] {
			t.Errorf("%s namespace is %s, want %s (ours %s)", e.name, got, theirs[e.name], home[e.name])
		}
	}
	res, err := h.Run(t.Context(), sh("hostname; cat /mnt/file; pwd; ls /proc/self/task | wc -l"))
	if err != nil || string(res.Stdout) != "berth-host\ntheirs\n/\n1\n" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
	res, err = h.Run(t.Context(), Command{Name: "sh", Args: []string{"-c", "echo data >&3"}, ReportFD: true})
	if err != nil || string(res.Report) != "data\n" {
		t.Errorf("report %q, %v", res.Report, err)
	}
	if _, err := os.Stat("/mnt/file"); err == nil {
		t.Error("the host's file is visible in our own namespace")
	}
	if now := namespacesOf(t, "/proc/self"); fmt.Sprint(now) != fmt.Sprint(home) {
		t.Errorf("our own namespaces moved: %v, were %v", now, home)
	}
	eventually(t, "no thread is left on the host", func() bool { _, stray := strayThreads(t, home); return stray == 0 })
}

func TestInMountNamespace(t *testing.T) {
	h, pid := otherHost(t)
	var opened *os.File
	err := h.InMountNamespace(t.Context(), func() (err error) {
		if err := os.Mkdir("/mnt/target", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("ours", "/mnt/target", "tmpfs", 0, "size=1m"); err != nil {
			return err
		}
		opened, err = os.Open("/mnt/file")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	line := make([]byte, 6)
	if _, err := opened.Read(line); err != nil || string(line) != "theirs" {
		t.Errorf("a file opened on the host reads %q, %v", line, err)
	}
	for _, tt := range []struct {
		path string
		want bool
	}{{fmt.Sprintf("/proc/%d/mountinfo", pid), true}, {"/proc/self/mountinfo", false}} {
		info, err := os.ReadFile(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(info), " /mnt/target "); got != tt.want {
			t.Errorf("mount in %s: %v, want %v", tt.path, got, tt.want)
		}
	}
	if err := h.InMountNamespace(t.Context(), func() error { return unix.Unmount("/mnt/target", 0) }); err != nil {
		t.Error(err)
	}
	want := errors.New("theirs")
	if err := h.InMountNamespace(t.Context(), func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func TestInMountNamespacePanics(t *testing.T) {
	h, _ := otherHost(t)
	defer func() {
		if got := recover(); got != "ouch" {
			t.Errorf("recovered %v", got)
		}
	}()
	_ = h.InMountNamespace(t.Context(), func() error { panic("ouch") })
}

func TestThousandRunsLeakNothing(t *testing.T) {
	h, _ := otherHost(t)
	home := namespacesOf(t, "/proc/self")
	run := func(n int) {
		for range n {
			if _, err := h.Run(t.Context(), Command{Name: "true", ReportFD: true, Stdin: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if err := h.InMountNamespace(t.Context(), func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	fds := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	run(20)
	fdsBefore := fds()
	threadsBefore, _ := strayThreads(t, home)
	run(1000)
	if after := fds(); after > fdsBefore {
		t.Errorf("%d descriptors, were %d", after, fdsBefore)
	}
	eventually(t, "the threads are gone", func() bool {
		threads, stray := strayThreads(t, home)
		// A few of the runtime's own may have come: each run that blocks in the
		// kernel lets another thread start.
		return stray == 0 && threads <= threadsBefore+10
	})
}

func TestLookPathOnHost(t *testing.T) {
	h, _ := otherHost(t)
	path, err := h.LookPath(t.Context(), "sh")
	if err != nil || filepath.Base(path) != "sh" {
		t.Errorf("got %q, %v", path, err)
	}
	// An absolute link resolves on the host, where /usr/local/sbin is another one.
	prepare := `mount -t tmpfs x /usr/local/sbin && ln -s /mnt/bin/target /usr/local/sbin/berth-tool &&
ln -s /mnt/bin/nothing /usr/local/sbin/berth-dangling && echo x >/usr/local/sbin/berth-data &&
mkdir /usr/local/sbin/berth-directory && printf '#!/bin/sh\necho found\n' >/mnt/bin/target && chmod +x /mnt/bin/target`
	if _, err := h.Run(t.Context(), sh(prepare)); err != nil {
		t.Fatal(err)
	}
	if path, err := h.LookPath(t.Context(), "berth-tool"); err != nil || path != "/usr/local/sbin/berth-tool" {
		t.Errorf("got %q, %v", path, err)
	}
	if res, err := h.Run(t.Context(), Command{Name: "berth-tool"}); err != nil || string(res.Stdout) != "found\n" {
		t.Errorf("got %q, %v", res.Stdout, err)
	}
	for _, name := range []string{"berth-dangling", "berth-data", "berth-directory"} {
		if _, err := h.LookPath(t.Context(), name); !errors.Is(err, volume.ErrToolMissing) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMissingToolNamesItsPackage(t *testing.T) {
	h, _ := otherHost(t)
	// A host without programs, as far as the search goes.
	hide := "for d in /usr/local/sbin /usr/local/bin /usr/sbin; do mount -t tmpfs x $d; done"
	if _, err := h.Run(t.Context(), sh(hide)); err != nil {
		t.Fatal(err)
	}
	_, err := h.LookPath(t.Context(), "mkfs.xfs")
	if !errors.Is(err, volume.ErrToolMissing) || !strings.Contains(err.Error(), "xfsprogs") {
		t.Errorf("got %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"/", "/host", "/proc/self/root", "/proc/1/root" + "/etc", "proc/1/root", fmt.Sprintf("/proc/%d/root", os.Getpid()), "/proc/99999999/root"} {
		if h, err := New(Options{HostRoot: root}); err == nil {
			_ = h.Close()
			t.Errorf("%q was taken", root)
		}
	}
}

// The work never happens on the thread-group leader, whichever thread the caller
// is on.
func TestNeverOnTheLeader(t *testing.T) {
	t.Parallel()
	for range 200 {
		var tid int
		if err := onThread(func() error { tid = unix.Gettid(); return nil }); err != nil {
			t.Fatal(err)
		}
		if tid == unix.Getpid() {
			t.Fatal("ran on the thread-group leader")
		}
	}
}
