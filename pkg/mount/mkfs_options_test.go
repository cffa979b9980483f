// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestCheckMkfsOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fsType, options string
		wrong           string // in the message; empty is allowed
	}{
		{mount.Ext4, "", ""},
		{mount.Ext4, "-b 1024 -i 4096 -I 512 -m 1 -N 1000 -T largefile", ""},
		{mount.Ext4, "-E stride=16,stripe_width=64,lazy_itable_init=0 -J size=64 -O ^huge_file,bigalloc,project -C 65536", ""},
		{mount.XFS, "-b size=4k -d su=64k,sw=4,agcount=8 -i size=1024,sparse=0 -l size=64m -m reflink=0,rmapbt=1 -n size=8192 -s size=4096", ""},
		{mount.Btrfs, "-n 32k -s 4096 -d single -m dup -O quota,^no-holes --csum sha256", ""},
		{mount.Btrfs, "-f x", "\"-f\""},
		{mount.Btrfs, "-U " + uuidB, "\"-U\""},
		{mount.Btrfs, "-b 1g", "\"-b\""},
		{mount.Btrfs, "-r /etc", "\"-r\""},
		{mount.Btrfs, "-d raid0", "raid0"},
		{mount.Btrfs, "-O zoned", "zoned"},
		{mount.Btrfs, "--csum blake2", "blake2"},
		{mount.Btrfs, "-n 16k /dev/sdb x", "/dev/sdb"},
		{"", "-b 1024", "filesystem"},
		{mount.Ext4, "-F", "\"-F\""},
		{mount.Ext4, "-U random", "\"-U\""},
		{mount.Ext4, "-L mine", "\"-L\""},
		{mount.Ext4, "-b4096", "\"-b4096\""},
		{mount.Ext4, "4096 -b", "\"4096\""},
		{mount.Ext4, "-b 4096 /dev/sdb", "/dev/sdb"},
		{mount.Ext4, "-b 4096 /dev/sdb x", "/dev/sdb"},
		{mount.Ext4, "-b", "has no value"},
		{mount.Ext4, "-b 4096 -b 1024", "there twice"},
		{mount.Ext4, "-b 65536", "65536"},
		{mount.Ext4, "-m 100", "100"},
		{mount.Ext4, "-O ^has_journal", "^has_journal"},
		{mount.Ext4, "-O journal_dev", "journal_dev"},
		{mount.Ext4, "-J device=/dev/sdb", "\"device\""},
		{mount.Ext4, "-E root_owner=0:0", "\"root_owner\""},
		{mount.Ext4, "-E lazy_journal_init=1", "\"lazy_journal_init\""},
		{mount.Ext4, "-E offset=512", "\"offset\""},
		{mount.Ext4, "-E stride", "stride"},
		{mount.Ext4, "-d /etc", "\"-d\""},
		{mount.Ext4, "-i size=512", "size=512"},
		{mount.XFS, "-f", "\"-f\""},
		{mount.XFS, "-d name=/dev/sdb", "\"name\""},
		{mount.XFS, "-d file=1", "\"file\""},
		{mount.XFS, "-l logdev=/dev/sdb", "\"logdev\""},
		{mount.XFS, "-l internal=0", "\"internal\""},
		{mount.XFS, "-r rtdev=/dev/sdb", "\"-r\""},
		{mount.XFS, "-m uuid=1", "\"uuid\""},
		{mount.XFS, "-p file", "\"-p\""},
		{mount.XFS, "-m reflink=2", "reflink=\"2\""},
		{mount.Ext4, strings.Repeat("-b 4096 ", 17), "34 words"},
	} {
		err := mount.CheckMkfsOptions(c.fsType, strings.Fields(c.options))
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s %q: %v", c.fsType, c.options, err)
		case c.wrong != "" && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s %q: %v, want ErrInvalid with %s", c.fsType, c.options, err, c.wrong)
		}
	}
}

func TestFormatWithOptions(t *testing.T) {
	for _, c := range []struct {
		fsType, options string
		blockSize       uint32
	}{
		{mount.Ext4, "-b 1024 -E stride=16,stripe_width=64 -m 5", 1024},
		{mount.XFS, "-b size=1k -m reflink=0", 1024},
		{mount.Btrfs, "-s 16k -n 16k -m single -O ^no-holes --csum xxhash", 16384},
	} {
		t.Run(c.fsType, func(t *testing.T) {
			loop := mounttest.LoopDevice(t, sizeOf[c.fsType])
			host := &counting{Host: mounttest.Here(t)}
			req := mount.FormatRequest{Device: loop.Path, FSType: c.fsType, UUID: uuidA, NeverFormatted: true, Options: strings.Fields(c.options)}
			if err := mount.NewFormatter(host).Format(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			s, err := mount.NewMounter(host).Inspect(t.Context(), loop.Path)
			if err != nil || s.UUID != uuidA || !s.Complete || s.BlockSizeBytes != int64(c.blockSize) {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	loop := mounttest.LoopDevice(t, sizeOf[mount.Ext4])
	host := &counting{Host: mounttest.Here(t)}
	before := fingerprint(t, loop.Path)
	req := mount.FormatRequest{Device: loop.Path, FSType: mount.Ext4, UUID: uuidA, NeverFormatted: true, Options: []string{"-F", "x"}}
	if err := mount.NewFormatter(host).Format(t.Context(), req); !errors.Is(err, volume.ErrInvalid) || host.programs() != "" || fingerprint(t, loop.Path) != before {
		t.Errorf("an option that is not allowed: %v, ran %q", err, host.programs())
	}
}

// A mkfs that writes all inode tables writes 1/64 of the disk, which takes longer than any other.
func TestInodeTablesHaveTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fsType, options string
		tables          bool
	}{
		{mount.Ext4, "", false},
		{mount.Ext4, "-E stride=16,lazy_itable_init=1 -O metadata_csum,^quota", false},
		{mount.Ext4, "-E lazy_itable_init=1,lazy_itable_init=0", true},
		{mount.Ext4, "-E lazy_itable_init=0,stride=16", true},
		{mount.Ext4, "-O ^quota,^metadata_csum", true},
		{mount.XFS, "-d su=64k,sw=4", false},
	} {
		timeout, err := mount.MkfsTimeout(mount.FormatRequest{Device: "/dev/vdb", FSType: c.fsType, UUID: uuidA, Options: strings.Fields(c.options)})
		if err != nil || timeout >= 12*time.Hour != c.tables {
			t.Errorf("%s %q: %v, %v", c.fsType, c.options, timeout, err)
		}
	}
}

func FuzzCheckMkfsOptions(f *testing.F) {
	f.Add("ext4", "-b 4096 -E stride=16 -O ^quota")
	f.Add("xfs", "-d su=64k,sw=4 -m reflink=0")
	f.Add("btrfs", "-n 16k --csum sha256 -O quota,^no-holes")
	f.Fuzz(func(t *testing.T, fsType, options string) {
		words := strings.Fields(options)
		if mount.CheckMkfsOptions(fsType, words) != nil {
			return
		}
		for i, word := range words {
			if strings.ContainsAny(word, "/;\x00") || i%2 == 1 && strings.HasPrefix(word, "-") {
				t.Errorf("%q is allowed in %q", word, options)
			}
		}
	})
}
