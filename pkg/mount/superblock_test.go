// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

// image makes a filesystem in a sparse file with the real mkfs.
func image(t testing.TB, name string, sizeBytes int64, args ...string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, sizeBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := mounttest.Here(t).Run(t.Context(), command(name, append(args, file)...)); err != nil {
		t.Skipf("this machine cannot make the image: %v", err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 72<<10)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	return head
}

func TestReadSuperblock(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, program string
		sizeBytes     int64
		args          []string
		want          mount.Superblock
	}{
		{
			"ext4", "mkfs.ext4", 64 * mib,
			[]string{"-q", "-U", uuidA, "-L", "data"},
			mount.Superblock{FSType: "ext4", UUID: uuidA, Label: "data", BlockSizeBytes: 1024, Blocks: 64 << 10, Complete: true},
		},
		{
			"ext4 without checksums", "mkfs.ext4", 64 * mib,
			[]string{"-q", "-U", uuidB, "-O", "^metadata_csum,^64bit", "-b", "4096"},
			mount.Superblock{FSType: "ext4", UUID: uuidB, BlockSizeBytes: 4096, Blocks: 16 << 10, Complete: true},
		},
		{
			"ext3", "mkfs.ext3", 64 * mib,
			[]string{"-q", "-U", uuidA, "-b", "2048"},
			mount.Superblock{FSType: "ext3", UUID: uuidA, BlockSizeBytes: 2048, Blocks: 32 << 10, Complete: true},
		},
		{
			"ext2", "mkfs.ext2", 64 * mib,
			[]string{"-q", "-U", uuidA, "-b", "4096"},
			mount.Superblock{FSType: "ext2", UUID: uuidA, BlockSizeBytes: 4096, Blocks: 16 << 10, Complete: true},
		},
		{
			"xfs", "mkfs.xfs", 400 * mib,
			[]string{"-q", "-m", "uuid=" + uuidA, "-L", "data"},
			mount.Superblock{FSType: "xfs", UUID: uuidA, Label: "data", BlockSizeBytes: 4096, Blocks: 100 << 10, Complete: true},
		},
		{
			"xfs of 4 KiB sectors", "mkfs.xfs", 400 * mib,
			[]string{"-q", "-m", "uuid=" + uuidB, "-s", "size=4096"},
			mount.Superblock{FSType: "xfs", UUID: uuidB, BlockSizeBytes: 4096, Blocks: 100 << 10, Complete: true},
		},
		{
			"xfs without checksums", "mkfs.xfs", 400 * mib,
			[]string{"-q", "-m", "crc=0"},
			mount.Superblock{FSType: "xfs", BlockSizeBytes: 4096, Blocks: 100 << 10, Complete: true},
		},
		{
			// UUIDs of their own: mkfs.btrfs refuses one that is on a disk, and other
			// tests have loop devices with uuidA.
			"btrfs", "mkfs.btrfs", 400 * mib,
			[]string{"-q", "-U", "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f00", "-L", "data"},
			mount.Superblock{FSType: "btrfs", UUID: "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f00", Label: "data", BlockSizeBytes: 4096, Blocks: 100 << 10, Complete: true},
		},
		{
			"btrfs with xxhash", "mkfs.btrfs", 400 * mib,
			[]string{"-q", "-U", "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f01", "--csum", "xxhash"},
			mount.Superblock{FSType: "btrfs", UUID: "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f01", BlockSizeBytes: 4096, Blocks: 100 << 10, Complete: true},
		},
		{
			"btrfs with sha256", "mkfs.btrfs", 400 * mib,
			[]string{"-q", "-U", "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f02", "--csum", "sha256", "-s", "16k", "-n", "16k"},
			mount.Superblock{FSType: "btrfs", UUID: "5a0e7fc7-1d9b-4a5e-8a53-8d3f5a1f2f02", BlockSizeBytes: 16384, Blocks: 25 << 10, Complete: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			head := image(t, tt.program, tt.sizeBytes, tt.args...)
			got, err := mount.ReadSuperblock(bytes.NewReader(head))
			if tt.want.UUID == "" {
				got.UUID = ""
			}
			tells := strings.HasPrefix(got.FSType, "ext")
			for what, at := range map[string]time.Time{"made": got.Made, "written": got.Written} {
				if at.IsZero() == tells || tells && time.Since(at).Abs() > time.Hour {
					t.Errorf("it says that it was %s %s", what, at)
				}
			}
			got.Made, got.Written = time.Time{}, time.Time{}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

// Any one bit that is turned within a superblock with a checksum is noticed, or
// the superblock is not taken for one.
func TestReadSuperblockNoticesDamage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, program string
		args          []string
		from, to      int
	}{
		{"ext4", "mkfs.ext4", []string{"-q", "-O", "metadata_csum"}, 1024, 2048},
		{"xfs", "mkfs.xfs", []string{"-q"}, 0, 512},
		{"btrfs", "mkfs.btrfs", []string{"-q"}, 64<<10 + 32, 68 << 10},
		{"btrfs with sha256", "mkfs.btrfs", []string{"-q", "--csum", "sha256"}, 64 << 10, 68 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			head := image(t, tt.program, 400*mib, tt.args...)
			for at := tt.from; at < tt.to; at++ {
				head[at] ^= 0x10
				got, err := mount.ReadSuperblock(bytes.NewReader(head))
				if !errors.Is(err, mount.ErrDamaged) && !errors.Is(err, mount.ErrNoFilesystem) {
					// The feature that says that there is a checksum is itself a bit.
					if tt.name != "ext4" || at != 1024+0x65 {
						t.Errorf("byte %d: got %+v, %v", at, got, err)
					}
				}
				head[at] ^= 0x10
			}
		})
	}
}

func TestReadSuperblockStates(t *testing.T) {
	t.Parallel()
	ext := image(t, "mkfs.ext4", 64*mib, "-q", "-O", "^metadata_csum,^64bit")
	xfs := image(t, "mkfs.xfs", 400*mib, "-q", "-m", "crc=0")
	btrfs := image(t, "mkfs.btrfs", 400*mib, "-q")
	edited := func(head []byte, edit func([]byte)) []byte {
		head = bytes.Clone(head)
		edit(head)
		return head
	}
	// sealed edits the superblock of btrfs and makes its checksum true.
	sealed := func(edit func([]byte)) []byte {
		return edited(btrfs, func(b []byte) { edit(b[64<<10 : 68<<10]); seal(b[64<<10 : 68<<10]) })
	}
	both := edited(ext, func(b []byte) { copy(b, xfs[:512]) })
	tests := []struct {
		name  string
		head  []byte
		check func(mount.Superblock) bool
		err   error
	}{
		{"ext4 with a journal to replay", edited(ext, func(b []byte) { b[1024+0x60] |= 4 }), func(s mount.Superblock) bool { return s.NeedsRecovery && !s.HasErrors }, nil},
		{"ext4 with errors", edited(ext, func(b []byte) { b[1024+0x3A] |= 2 }), func(s mount.Superblock) bool { return s.HasErrors }, nil},
		{"ext4 that was not unmounted", edited(ext, func(b []byte) { b[1024+0x3A] &^= 1 }), func(s mount.Superblock) bool { return s.HasErrors }, nil},
		{"ext4 beyond 32 bits of blocks", edited(ext, func(b []byte) { b[1024+0x60] |= 0x80; b[1024+0x150] = 1 }), func(s mount.Superblock) bool { return s.Blocks == 1<<32+64<<10 }, nil},
		{"ext4 with absurd blocks", edited(ext, func(b []byte) { b[1024+0x18] = 40 }), nil, mount.ErrDamaged},
		{"ext4 without blocks", edited(ext, func(b []byte) { copy(b[1024+4:], []byte{0, 0, 0, 0}) }), nil, mount.ErrDamaged},
		{"external journal", edited(ext, func(b []byte) { b[1024+0x60] |= 8 }), nil, mount.ErrDamaged},
		{"xfs that mkfs did not finish", edited(xfs, func(b []byte) { b[126] = 1 }), func(s mount.Superblock) bool { return !s.Complete }, nil},
		{"xfs with absurd sectors", edited(xfs, func(b []byte) { b[102] = 0xFF }), nil, mount.ErrDamaged},
		{"xfs of an unknown version", edited(xfs, func(b []byte) { b[101] = b[101]&^0xF | 9 }), nil, mount.ErrDamaged},
		{"both at once", both, nil, mount.ErrDamaged},
		{"btrfs that mkfs did not finish", sealed(func(b []byte) { b[0x40] = '!' }), func(s mount.Superblock) bool { return !s.Complete }, nil},
		{"btrfs with a log to replay", sealed(func(b []byte) { b[0x60] = 1 }), func(s mount.Superblock) bool { return s.NeedsRecovery }, nil},
		{"btrfs of two devices", sealed(func(b []byte) { b[0x88] = 2 }), nil, mount.ErrDamaged},
		{"btrfs at another place than it says", sealed(func(b []byte) { b[0x32] = 2 }), nil, mount.ErrDamaged},
		{"btrfs with absurd sectors", sealed(func(b []byte) { b[0x90] = 1 }), nil, mount.ErrDamaged},
		{"btrfs without a size", sealed(func(b []byte) { clear(b[0x70:0x78]) }), nil, mount.ErrDamaged},
		{"btrfs with a checksum that nobody here knows", sealed(func(b []byte) { b[0xC4] = 3 }), nil, mount.ErrDamaged},
		{
			"ext4 with a btrfs in its files", edited(ext, func(b []byte) { copy(b[64<<10:], btrfs[64<<10:68<<10]) }),
			func(s mount.Superblock) bool { return s.FSType == mount.Ext4 }, nil,
		},
		{"zeroes", make([]byte, 64<<10), nil, mount.ErrNoFilesystem},
		{"nothing at all", nil, nil, mount.ErrNoFilesystem},
		{"too short", ext[:1500], nil, mount.ErrNoFilesystem},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := mount.ReadSuperblock(bytes.NewReader(tt.head))
			if !errors.Is(err, tt.err) || tt.check != nil && !tt.check(s) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}

// seal makes the checksum of a superblock of btrfs true.
func seal(b []byte) {
	clear(b[:32])
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("I/O error") }

// A device that cannot be read is not a device without a filesystem.
func TestReadSuperblockReadError(t *testing.T) {
	t.Parallel()
	_, err := mount.ReadSuperblock(broken{})
	if err == nil || errors.Is(err, mount.ErrNoFilesystem) || !strings.Contains(err.Error(), "I/O error") {
		t.Errorf("got %v", err)
	}
}

func FuzzReadSuperblock(f *testing.F) {
	f.Add(image(f, "mkfs.ext4", 64*mib, "-q")[:8192])
	f.Add(image(f, "mkfs.ext4", 64*mib, "-q", "-O", "^metadata_csum")[:8192])
	f.Add(image(f, "mkfs.xfs", 400*mib, "-q")[:8192])
	f.Add(image(f, "mkfs.xfs", 400*mib, "-q", "-m", "crc=0")[:8192])
	f.Add(image(f, "mkfs.btrfs", 400*mib, "-q")[64<<10 : 68<<10])
	f.Fuzz(func(t *testing.T, head []byte) {
		if len(head) == 4096 { // of btrfs, which lies elsewhere
			seal(head)
			head = append(make([]byte, 64<<10), head...)
		}
		s, err := mount.ReadSuperblock(bytes.NewReader(head))
		if err == nil && (s.Blocks <= 0 || s.BlockSizeBytes < 512 || s.SizeBytes() <= 0 || len(s.UUID) != 36 || s.FSType == "") {
			t.Errorf("taken for a superblock: %+v", s)
		}
		if err != nil && !errors.Is(err, mount.ErrDamaged) && !errors.Is(err, mount.ErrNoFilesystem) {
			t.Errorf("got %v", err)
		}
	})
}
