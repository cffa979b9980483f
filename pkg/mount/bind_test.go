// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestBindDirectory(t *testing.T) {
	mounttest.RequireRoot(t)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(source, "file"), "data")
	mounttest.Unmount(t, target)
	for range 3 {
		if err := m.BindDirectory(t.Context(), mount.Bind{Source: source, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	mustRead(t, filepath.Join(target, "file"), "data")
	write(t, filepath.Join(target, "file"), "new")
	mustRead(t, filepath.Join(source, "file"), "new")
	if err := m.Unmount(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	mustRead(t, filepath.Join(source, "file"), "new")
}

func TestBindReadOnlyAndFlags(t *testing.T) {
	mounttest.RequireRoot(t)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	mounttest.Unmount(t, target)
	// A bind mount that was made, and its flags not yet: the call was killed between.
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	b := mount.Bind{Source: source, Target: target, ReadOnly: true, Options: []string{"nosuid,nodev", "noatime"}}
	for range 2 {
		if err := m.BindDirectory(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOATIME); st.Flags&want != want {
		t.Errorf("flags %#x, want %#x", st.Flags, want)
	}
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through it: %v", err)
	}
	if err := os.WriteFile(filepath.Join(source, "x"), nil, 0o600); err != nil {
		t.Errorf("write to the source: %v", err)
	}
	if err := m.BindDirectory(t.Context(), mount.Bind{Source: source, Target: target}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("writable where it is read-only: got %v", err)
	}
}

func TestBindRefuses(t *testing.T) {
	mounttest.RequireRoot(t)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	source, other, target := filepath.Join(dir, "source"), filepath.Join(dir, "other"), filepath.Join(dir, "target")
	for _, d := range []string{source, other} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mounttest.Unmount(t, target)
	if err := m.BindDirectory(t.Context(), mount.Bind{Source: source, Target: target}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		bind mount.Bind
		want error
	}{
		{"something else is there", mount.Bind{Source: other, Target: target}, volume.ErrExists},
		{"no source", mount.Bind{Source: filepath.Join(dir, "nothing"), Target: filepath.Join(dir, "t")}, volume.ErrNotFound},
		{"option of a filesystem", mount.Bind{Source: source, Target: filepath.Join(dir, "t"), Options: []string{"discard"}}, volume.ErrInvalid},
		{"flag of a filesystem", mount.Bind{Source: source, Target: filepath.Join(dir, "t"), Options: []string{"sync"}}, volume.ErrInvalid},
		{"relative source", mount.Bind{Source: "source", Target: filepath.Join(dir, "t")}, volume.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := m.BindDirectory(t.Context(), tt.bind); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if err := m.BindDevice(t.Context(), mount.Bind{Source: source, Target: filepath.Join(dir, "t")}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a directory as a device: got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "t")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused bind left a target behind: %v", err)
	}
}

func TestBindDevice(t *testing.T) {
	loop, other := mounttest.LoopDevice(t, 8*mib), mounttest.LoopDevice(t, 8*mib)
	m := mount.NewMounter(mounttest.Here(t))
	target := filepath.Join(t.TempDir(), "device")
	mounttest.Unmount(t, target)
	for range 3 {
		if err := m.BindDevice(t.Context(), mount.Bind{Source: loop.Path, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, target, "raw")
	got := make([]byte, 3)
	f, err := os.Open(loop.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "raw" {
		t.Errorf("the device reads %q, %v", got, err)
	}
	if s, err := m.Stats(t.Context(), target); err != nil || !s.Block || s.TotalBytes != 8*mib {
		t.Errorf("stats %+v, %v", s, err)
	}
	if err := m.BindDevice(t.Context(), mount.Bind{Source: other.Path, Target: target}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("another device: got %v", err)
	}
	for range 2 {
		if err := m.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
	write(t, target, "a file with data")
	if err := m.BindDevice(t.Context(), mount.Bind{Source: loop.Path, Target: target}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a file with data as target: got %v", err)
	}
	mustRead(t, target, "a file with data")
}

func TestStatsNeedAMount(t *testing.T) {
	mounttest.RequireRoot(t)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "nothing"), filepath.Join(dir, "a", "b")} {
		if s, err := m.Stats(t.Context(), path); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("%s: got %+v, %v", path, s, err)
		}
	}
}
