// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestPromisesAreReadAnew: what is remembered of a file counts only while it is that
// file.
func TestPromisesAreReadAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, promiseDir), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	id := func(n int) string { return fmt.Sprintf("a0000000-0000-4000-8000-%012d", n) }
	file := func(n int) string { return filepath.Join(dir, promiseFile(id(n))) }
	text := func(n, size int) []byte {
		return fmt.Appendf(nil, `{"id":%q,"name":"pvc-%d","sizeBytes":%d}`, id(n), n, size)
	}
	cache := newPromises()
	want := func(when string, total int64) {
		t.Helper()
		for range 2 {
			all, err := cache.all(root)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			var sum int64
			for _, p := range all {
				sum += p.SizeBytes
			}
			if sum != total {
				t.Errorf("%s: %d bytes are promised, want %d", when, sum, total)
			}
		}
	}
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want("nothing", 0)
	write(file(1), text(1, 100))
	write(file(2), text(2, 20))
	want("two", 120)
	write(file(1)+tmpSuffix, text(1, 300))
	want("a file that is not in its place", 120)
	if err := os.Rename(file(1)+tmpSuffix, file(1)); err != nil {
		t.Fatal(err)
	}
	want("one was raised", 320)
	write(file(2), text(2, 4000))
	want("one was written in place", 4300)
	if err := os.Remove(file(1)); err != nil {
		t.Fatal(err)
	}
	want("one is gone", 4000)
	write(file(2), text(1, 4000))
	if all, err := cache.all(root); err == nil {
		t.Errorf("a promise of another volume was taken: %+v", all)
	}
}
