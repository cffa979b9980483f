// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// treeHost is a host of files.
type treeHost struct{ root string }

func (h treeHost) Root() string { return h.root }

func (treeHost) Run(context.Context, hostexec.Command) (hostexec.Result, error) {
	return hostexec.Result{}, errors.New("no programs here")
}

func (treeHost) LookPath(context.Context, string) (string, error) { return "", volume.ErrToolMissing }

func (treeHost) InMountNamespace(_ context.Context, f func() error) error { return f() }

func (h treeHost) write(t *testing.T, path, content string) {
	t.Helper()
	path = filepath.Join(h.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func (h treeHost) link(t *testing.T, target, path string) {
	t.Helper()
	path = filepath.Join(h.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
}

func (h treeHost) remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(h.root, path)); err != nil {
		t.Fatal(err)
	}
}

// TestWhatAnOpenDeviceLiesOn: an open device is the volume's only if it lies on the very disk that
// the volume is on, and not on one that was pulled out, whatever has its name and number now.
func TestWhatAnOpenDeviceLiesOn(t *testing.T) {
	const disk, other = "sys/devices/pci0/block/sdb", "sys/devices/pci0/block/sdc"
	for name, tt := range map[string]struct {
		change func(h treeHost)
		want   error
		gone   bool
	}{
		"as it was opened": {func(treeHost) {}, nil, false},
		"the disk is gone, and put back under another name": {func(h treeHost) {
			h.remove(t, disk)
		}, volume.ErrGone, true},
		"the disk is gone, and put back under its name": {func(h treeHost) {
			h.remove(t, disk+"/holders/dm-4")
		}, volume.ErrGone, true},
		"on another disk": {func(h treeHost) {
			h.write(t, other+"/dev", "8:32\n")
			h.remove(t, "sys/devices/virtual/block/dm-4/slaves/sdb")
			h.link(t, "../../../../pci0/block/sdc", "sys/devices/virtual/block/dm-4/slaves/sdc")
		}, volume.ErrIdentity, false},
		"it is closed meanwhile": {func(h treeHost) {
			h.remove(t, "sys/devices/virtual/block/dm-4")
		}, os.ErrNotExist, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := treeHost{t.TempDir()}
			h.write(t, disk+"/dev", "8:16\n")
			h.link(t, "../../../virtual/block/dm-4", disk+"/holders/dm-4")
			h.write(t, "sys/devices/virtual/block/dm-4/size", "2048\n")
			h.link(t, "../../../../pci0/block/sdb", "sys/devices/virtual/block/dm-4/slaves/sdb")
			h.link(t, "../../devices/pci0/block/sdb", "sys/dev/block/8:16")
			h.link(t, "../../devices/virtual/block/dm-4", "sys/dev/block/253:4")
			if err := os.Mkdir(filepath.Join(h.root, "dev"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mknod(filepath.Join(h.root, "dev/sdb"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 16))); err != nil {
				t.Skipf("no device nodes can be made here: %v", err)
			}
			tt.change(h)
			opened, err := NewClient(h).describe(
				Mapping{ID: testUUID, UUID: testUUID, Device: "/dev/sdb"}, dm.Device{Major: 253, Minor: 4, Active: true})
			if !errors.Is(err, tt.want) || errors.Is(err, volume.ErrGone) != tt.gone {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && (opened.Path != "/dev/dm-4" || opened.SizeBytes != 1<<20) {
				t.Errorf("got %+v", opened)
			}
		})
	}
}
