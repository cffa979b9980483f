// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// What is immutable cannot be counted: it is named before anything is touched, and the adoption goes on
// when that is taken away.
func TestAdoptImmutable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the immutable flag needs root")
	}
	const immutable, appendOnly = 0x10, 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL
	for at, flag := range map[string]int{"a/b/c/file": immutable, "a/b": appendOnly, ".": immutable} {
		p := limitedBeside(t)
		dir := handed(t, p)
		set := func(at string, flags int) error {
			f, err := os.Open(at)
			must(t, err)
			defer f.Close()
			return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
		}
		if err := set(path.Join(dir, at), flag); err != nil {
			t.Skipf("this filesystem has no such flags: %v", err)
		}
		t.Cleanup(func() {
			for _, now := range []string{dir, path.Join(p.root, "volumes", volumetest.ID(1))} {
				if _, err := os.Lstat(path.Join(now, at)); err == nil {
					_ = set(path.Join(now, at), 0)
				}
			}
		})
		_, err := adopt(t, p, 1, dir, mib)
		if !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), path.Join(dir, at)+" was made immutable") {
			t.Errorf("%s: %v, want ErrNotAdoptable that names it", at, err)
		}
		if _, err := os.Lstat(dir); err != nil {
			t.Errorf("%s: it was moved: %v", at, err)
		}
		must(t, set(path.Join(dir, at), 0))
		if at == "." {
			_, err = adopt(t, p, 1, dir, mib)
			must(t, err)
			continue
		}
		// It was moved, and the flag is set before all is counted.
		for n := 0; ; n++ {
			dead := p.crashAt(t, n)
			_, err := adopt(t, p, 1, dir, mib)
			died := dead()
			p.restart(t)
			if !died {
				t.Fatalf("it was never moved and not counted: %v", err)
			}
			if _, err := os.Lstat(dir); err != nil {
				break
			}
		}
		moved := path.Join(p.root, "volumes", volumetest.ID(1), at)
		must(t, set(moved, flag))
		if _, err := adopt(t, p, 1, dir, mib); err == nil || !strings.Contains(err.Error(), moved+" was made immutable") {
			t.Errorf("%s: counted: %v", at, err)
		}
		must(t, set(moved, 0))
		_, err = adopt(t, p, 1, dir, mib)
		must(t, err)
	}
}
