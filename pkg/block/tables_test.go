// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
)

// ownTables is a host whose mount table is that of the test.
func ownTables(t *testing.T) block.Sysfs {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"1": "/proc/self", "swaps": "/proc/swaps"} {
		if err := os.Symlink(target, filepath.Join(root, "proc", name)); err != nil {
			t.Fatal(err)
		}
	}
	return block.Sysfs{Root: "/sys", HostRoot: root}
}

func TestWatchTables(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	// The mounts are seen in the process's own namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	directory := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	changes, ended := make(chan struct{}, 100), make(chan error, 1)
	sysfs := ownTables(t)
	go func() { ended <- sysfs.WatchTables(ctx, func() { changes <- struct{}{} }) }()

	// Whatever came before is over when nothing is told for a while.
	quiet := func() (told int) {
		for {
			select {
			case <-changes:
				told++
			case <-time.After(200 * time.Millisecond):
				return told
			}
		}
	}
	if quiet() == 0 {
		t.Error("nothing was told at the beginning: a mount before it is missed")
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mount", func() error { return unix.Mount("berth-test", directory, "tmpfs", 0, "size=1m") }},
		{"unmount", func() error { return unix.Unmount(directory, 0) }},
	} {
		if err := step.do(); err != nil {
			t.Skipf("%s: %v", step.name, err)
		}
		select {
		case <-changes:
		case <-time.After(10 * time.Second):
			t.Fatalf("nobody told of the %s", step.name)
		}
		quiet()
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end with its context")
	}
}

func TestWatchTablesWithoutATable(t *testing.T) {
	t.Parallel()
	if err := (block.Sysfs{HostRoot: t.TempDir()}).WatchTables(t.Context(), func() {}); err == nil {
		t.Error("no error though there is no mount table")
	}
}
