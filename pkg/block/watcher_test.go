// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testLoop attaches a loop device for tests inside the package.
func testLoop(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	backing := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(backing, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device to be had: %v: %s", err, out)
	}
	node := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", node).Run() })
	return node
}

func waitFor(t *testing.T, w *Watcher, want func(Change) bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case change, open := <-w.Changes():
			if !open {
				t.Fatalf("the watcher stopped: %v", w.Err())
			}
			if want(change) {
				return
			}
		case <-deadline:
			t.Fatal("the change was not reported")
		}
	}
}

func TestWatcherHearsTheKernel(t *testing.T) {
	t.Parallel()
	w, err := Watch(t.Context(), Sysfs{HostRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	node := testLoop(t)
	waitFor(t, w, func(c Change) bool { return c.KernelName == filepath.Base(node) && !c.Udev && !c.Removed })
}

func TestWatcherHearsUdev(t *testing.T) {
	t.Parallel()
	node := testLoop(t)
	name := filepath.Base(node)
	number, err := os.ReadFile("/sys/class/block/" + name + "/dev")
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	records := filepath.Join(host, "run/udev/data")
	if err := os.MkdirAll(records, 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := Watch(t.Context(), Sysfs{HostRoot: host})
	if err != nil {
		t.Fatal(err)
	}
	temporary := filepath.Join(host, "record") // udevd writes, then moves
	if err := os.WriteFile(temporary, []byte("I:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(records, "b"+strings.TrimSpace(string(number)))); err != nil {
		t.Fatal(err)
	}
	waitFor(t, w, func(c Change) bool { return c.KernelName == name && c.Udev })
}

// TestWatcherOverflow sends more events than the smallest buffer holds while
// nobody reads, and expects to be told to look at everything again.
func TestWatcherOverflow(t *testing.T) {
	t.Parallel()
	node := testLoop(t)
	w, err := watch(t.Context(), Sysfs{HostRoot: t.TempDir()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if err := os.WriteFile("/sys/class/block/"+filepath.Base(node)+"/uevent", []byte("change"), 0); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, w, func(c Change) bool { return c.Rescan })
}

func TestWatcherEnds(t *testing.T) {
	t.Parallel()
	w, err := Watch(t.Context(), Sysfs{HostRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	w.cancel()
	for range w.Changes() {
	}
	if err := w.Err(); err != nil {
		t.Errorf("Err after an ordinary end: %v", err)
	}
}
