// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestOpenExclusive(t *testing.T) {
	t.Parallel()
	node, _ := loopDevice(t, 64<<20)
	f, err := block.OpenExclusive(node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := block.OpenExclusive(node); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a second exclusive open: %v, want ErrInUse", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f, err = block.OpenExclusiveReadOnly(node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0}, 0); err == nil {
		t.Error("a file that is open for reading took a write")
	}
	if _, err := block.OpenExclusive(node); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("an exclusive open beside an exclusive reader: %v, want ErrInUse", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", node)
	dir := t.TempDir()
	run(t, "mount", node, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	if _, err := block.OpenExclusive(node); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a mounted device: %v, want ErrInUse", err)
	}
	reader, err := block.OpenReadOnly(node)
	if err != nil {
		t.Fatalf("OpenReadOnly of a mounted device: %v", err)
	}
	if _, err := reader.WriteAt([]byte{0}, 0); err == nil {
		t.Error("a read-only file took a write")
	}
	_ = reader.Close()
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := block.OpenExclusive(filepath.Join(dir, "none")); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("no node: %v, want ErrNotFound", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/dev/null"} {
		if _, err := block.OpenExclusive(path); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", path, err)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	node, _ := loopDevice(t, 16<<20)
	shared, err := block.SharedLock(node)
	if err != nil {
		t.Fatal(err)
	}
	second, err := block.SharedLock(node)
	if err != nil {
		t.Fatalf("two that look: %v", err)
	}
	_ = second.Close()
	if _, err := block.Lock(node); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Lock beside a shared lock: %v, want ErrBusy", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := block.LockContext(short, node); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("LockContext beside a shared lock: %v, want ErrBusy", err)
	}
	got := make(chan error, 1)
	go func() {
		lock, err := block.LockContext(t.Context(), node)
		if err == nil {
			err = lock.Close()
		}
		got <- err
	}()
	if err := shared.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("LockContext after the other let go: %v", err)
	}
	exclusive, err := block.Lock(node)
	if err != nil {
		t.Fatal(err)
	}
	defer exclusive.Close()
	if _, err := block.SharedLock(node); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("SharedLock beside Lock: %v, want ErrBusy", err)
	}
}
