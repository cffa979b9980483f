// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/internal/durable"
)

func TestWriteFileReplacesWholeAndLeavesNoTemporary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for _, content := range []string{"first and longer", "second"} {
		if err := durable.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files left, %v; want 1", len(files), err)
	}
}

func TestWriteFileThatFailsLeavesTheOldContent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A directory in the file's place makes the rename fail, also for root.
	path := filepath.Join(dir, "a.json")
	if err := os.MkdirAll(filepath.Join(path, "child"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a directory")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || durable.IsTemporary(files[0].Name()) {
		t.Fatalf("left %v, %v; want only the directory", files, err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.json")
	if err := durable.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := durable.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("second removal: %v; want fs.ErrNotExist", err)
	}
}
