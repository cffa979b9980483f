// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

// fingerprint is a checksum of everything on a device.
func fingerprint(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func poke(t *testing.T, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

func TestFormat(t *testing.T) {
	for _, fsType := range everyType {
		t.Run(fsType, func(t *testing.T) {
			loop := mounttest.LoopDevice(t, sizeOf[fsType])
			host := &counting{Host: mounttest.Here(t)}
			f := mount.NewFormatter(host)
			begun := 0
			req := mount.FormatRequest{
				Device: loop.Path, FSType: fsType, UUID: uuidA, Label: "a-label-that-is-far-too-long", NeverFormatted: true,
				Begin: func(context.Context) error { begun++; return nil },
			}
			if err := f.Format(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if ran := host.programs(); ran != "mkfs."+fsType || begun != 1 {
				t.Errorf("ran %q, want only mkfs; Begin was called %d times", ran, begun)
			}
			s, err := mount.NewMounter(host).Inspect(t.Context(), loop.Path)
			if err != nil {
				t.Fatal(err)
			}
			if s.FSType != fsType || s.UUID != uuidA || !s.Complete || s.HasErrors || s.NeedsRecovery || s.BlockSizeBytes != 4096 || s.SizeBytes() != sizeOf[fsType] {
				t.Errorf("superblock %+v", s)
			}
			if want := map[string]string{mount.Ext4: "a-label-that-is-", mount.XFS: "a-label-that", mount.Btrfs: "a-label-that-is-far-too-long"}[fsType]; s.Label != want {
				t.Errorf("label %q, want %q", s.Label, want)
			}

			before := fingerprint(t, loop.Path)
			for _, never := range []bool{true, false} {
				for _, again := range []bool{true, false} {
					req.NeverFormatted, req.Begun = never, again
					if err := f.Format(t.Context(), req); err != nil {
						t.Errorf("again, never formatted %v, begun %v: %v", never, again, err)
					}
				}
			}
			if ran := host.programs(); ran != "" || begun != 1 {
				t.Errorf("a repeated call ran %q", ran)
			}
			if fingerprint(t, loop.Path) != before {
				t.Error("a repeated call changed the device")
			}
		})
	}
}

// Whatever is on a device that this volume's mkfs did not leave: nothing is
// written, no program runs, nothing is recorded.
func TestFormatRefusesContent(t *testing.T) {
	size := sizeOf[mount.Ext4]
	byteAt := func(offset int64) func(*testing.T, *mounttest.Loop) {
		return func(t *testing.T, l *mounttest.Loop) { poke(t, l.Path, offset, []byte{1}) }
	}
	program := func(name string, args ...string) func(*testing.T, *mounttest.Loop) {
		return func(t *testing.T, l *mounttest.Loop) {
			if _, err := mounttest.Here(t).Run(t.Context(), hostexec.Command{Name: name, Args: append(args, l.Path)}); err != nil {
				t.Skipf("this machine cannot make it: %v", err)
			}
		}
	}
	tests := []struct {
		name    string
		prepare func(*testing.T, *mounttest.Loop)
		request func(*mount.FormatRequest)
		want    error
	}{
		{"one byte at the start", byteAt(0), nil, volume.ErrNotBlank},
		{"one byte in the head", byteAt(1<<20 + 7), nil, volume.ErrNotBlank},
		{"one byte in the tail", byteAt(size - 1), nil, volume.ErrNotBlank},
		{"ext4 of somebody else", program("mkfs.ext4", "-q"), nil, volume.ErrNotBlank},
		{"ext4 of somebody else, after our mkfs was begun", program("mkfs.ext4", "-q"), func(r *mount.FormatRequest) { r.Begun = true }, volume.ErrNotBlank},
		{"ext2 with our UUID", program("mkfs.ext2", "-q", "-U", uuidA), func(r *mount.FormatRequest) { r.Begun = true }, volume.ErrNotBlank},
		{"swap", program("mkswap"), nil, volume.ErrNotBlank},
		{"swap, after our mkfs was begun", program("mkswap"), func(r *mount.FormatRequest) { r.Begun = true }, volume.ErrNotBlank},
		{"partitions, after our mkfs was begun", func(t *testing.T, l *mounttest.Loop) {
			c := command("sfdisk", "--quiet", "--no-reread", l.Path)
			c.Stdin = []byte("label: gpt\n,,L\n")
			if _, err := mounttest.Here(t).Run(t.Context(), c); err != nil {
				t.Skipf("this machine cannot make it: %v", err)
			}
		}, func(r *mount.FormatRequest) { r.Begun = true }, volume.ErrNotBlank},
		{"our own content, and another type asked for", program("mkfs.ext4", "-q", "-U", uuidA), func(r *mount.FormatRequest) { r.FSType = mount.XFS; r.Begun = true }, volume.ErrNotBlank},
		{"blank, but formatted before", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.NeverFormatted = false }, volume.ErrIdentity},
		{"blank, formatted before, and mkfs begun before", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.NeverFormatted = false; r.Begun = true }, volume.ErrIdentity},
		{"no such device", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.Device = "/dev/berth-nothing" }, volume.ErrNotFound},
		{"not a device", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.Device = "/etc/passwd" }, volume.ErrInvalid},
		{"unknown filesystem", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.FSType = "zfs" }, volume.ErrInvalid},
		{"bad UUID", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.UUID = "clear" }, volume.ErrInvalid},
		{"relative path", func(*testing.T, *mounttest.Loop) {}, func(r *mount.FormatRequest) { r.Device = "-F" }, volume.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			loop := mounttest.LoopDevice(t, size)
			tt.prepare(t, loop)
			before := fingerprint(t, loop.Path)
			host := &counting{Host: mounttest.Here(t)}
			req := mount.FormatRequest{
				Device: loop.Path, FSType: mount.Ext4, UUID: uuidA, NeverFormatted: true,
				Begin: func(context.Context) error { t.Error("Begin was called"); return nil },
			}
			if tt.request != nil {
				tt.request(&req)
			}
			if err := mount.NewFormatter(host).Format(t.Context(), req); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if ran := host.programs(); ran != "" && ran != "blkid" {
				t.Errorf("ran %s", ran)
			}
			if fingerprint(t, loop.Path) != before {
				t.Error("the device was changed")
			}
		})
	}
}

func TestFormatRefusesMounted(t *testing.T) {
	loop := formatted(t, mount.Ext4, uuidA)
	target := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	host := mounttest.Here(t)
	if err := mount.NewMounter(host).Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	err := mount.NewFormatter(host).Format(t.Context(), mount.FormatRequest{Device: loop.Path, FSType: mount.Ext4, UUID: uuidB, NeverFormatted: true, Begun: true})
	if !errors.Is(err, volume.ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// dying runs mkfs in a way that leaves the device half written.
type dying struct {
	mount.Host
	leave func() error
}

var errKilled = errors.New("killed")

func (d dying) Run(context.Context, hostexec.Command) (hostexec.Result, error) {
	return hostexec.Result{}, errors.Join(errKilled, d.leave())
}

// Killed between any two steps, the next call converges (I7).
func TestFormatConvergesAfterCrash(t *testing.T) {
	for _, fsType := range everyType {
		t.Run(fsType, func(t *testing.T) {
			size := sizeOf[fsType]
			garbage := make([]byte, 3<<20)
			for i := range garbage {
				garbage[i] = byte(i*7 + i>>9)
			}
			whole := formatted(t, fsType, uuidA)
			image, err := os.ReadFile(whole.File)
			if err != nil {
				t.Fatal(err)
			}
			// mkfs.btrfs looks on all disks for one with the UUID.
			whole.Detach()
			const btrfsSuper = 64 << 10
			if fsType == mount.Btrfs {
				copy(image[btrfsSuper+0x40:], "!") // what mkfs puts there until the end
				seal(image[btrfsSuper : btrfsSuper+4096])
			}
			tests := []struct {
				name  string
				leave func(*testing.T, *mounttest.Loop)
			}{
				{"before mkfs wrote anything", func(*testing.T, *mounttest.Loop) {}},
				{"garbage at both ends", func(t *testing.T, l *mounttest.Loop) {
					poke(t, l.Path, 8192, garbage)
					poke(t, l.Path, size-int64(len(garbage)), garbage)
				}},
				{"everything but the superblock", func(t *testing.T, l *mounttest.Loop) { poke(t, l.Path, 4096, image[4096:]) }},
				{"our superblock and nothing else, torn", func(t *testing.T, l *mounttest.Loop) {
					head := append([]byte(nil), image[:btrfsSuper+4096]...)
					clear(head[4096:btrfsSuper])
					head[0x400+0x3FF] ^= 0xFF // ext4: its checksum
					head[224] ^= 0xFF         // xfs: its checksum
					head[btrfsSuper] ^= 0xFF  // btrfs: its checksum
					poke(t, l.Path, 0, head)
				}},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					loop := mounttest.LoopDevice(t, size)
					begun := false
					req := mount.FormatRequest{
						Device: loop.Path, FSType: fsType, UUID: uuidA, NeverFormatted: true,
						Begin: func(context.Context) error { begun = true; return nil },
					}
					killed := dying{Host: mounttest.Here(t), leave: func() error { tt.leave(t, loop); return nil }}
					if err := mount.NewFormatter(killed).Format(t.Context(), req); !errors.Is(err, errKilled) || !begun {
						t.Fatalf("got %v, begun %v", err, begun)
					}
					req.Begun = true
					if err := mount.NewFormatter(mounttest.Here(t)).Format(t.Context(), req); err != nil {
						t.Fatal(err)
					}
					s, err := mount.NewMounter(mounttest.Here(t)).Inspect(t.Context(), loop.Path)
					if err != nil || s.UUID != uuidA || !s.Complete {
						t.Errorf("got %+v, %v", s, err)
					}
				})
			}
		})
	}
}

func TestFormatBeginFails(t *testing.T) {
	loop := mounttest.LoopDevice(t, 64*mib)
	host := &counting{Host: mounttest.Here(t)}
	want := errors.New("ledger is full")
	err := mount.NewFormatter(host).Format(t.Context(), mount.FormatRequest{
		Device: loop.Path, FSType: mount.Ext4, UUID: uuidA, NeverFormatted: true,
		Begin: func(context.Context) error { return want },
	})
	if !errors.Is(err, want) || host.programs() != "" {
		t.Errorf("got %v", err)
	}
}

func TestFormatTooSmall(t *testing.T) {
	loop := mounttest.LoopDevice(t, 1*mib)
	err := mount.NewFormatter(mounttest.Here(t)).Format(t.Context(), mount.FormatRequest{
		Device: loop.Path, FSType: mount.XFS, UUID: uuidA, NeverFormatted: true,
	})
	if !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
