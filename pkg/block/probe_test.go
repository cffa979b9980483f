// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

func prober(t *testing.T) block.Prober {
	t.Helper()
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return block.Prober{Runner: host}
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

// TestContentIsSeen makes real content on real devices: Blank must refuse all of
// it, and the probe must name it.
func TestContentIsSeen(t *testing.T) {
	t.Parallel()
	const size = 128 << 20
	cases := []struct {
		name, program string
		make          func(t *testing.T, node string)
		want          block.Content
	}{
		{
			"ext4 with a label that has a space", "mkfs.ext4", func(t *testing.T, node string) { run(t, "mkfs.ext4", "-q", "-L", "my files", node) },
			block.Content{Found: true, Type: "ext4", Kind: "filesystem", Label: "my files"},
		},
		{
			"swap", "mkswap", func(t *testing.T, node string) { run(t, "mkswap", node) },
			block.Content{Found: true, Type: "swap", Kind: "other"},
		},
		{
			"GPT", "sgdisk", func(t *testing.T, node string) { run(t, "sgdisk", "--new=1:0:0", node) },
			block.Content{Found: true, PartitionTable: "gpt"},
		},
		{"GPT with only the backup left", "sgdisk", func(t *testing.T, node string) {
			run(t, "sgdisk", "--new=1:0:0", node)
			run(t, "dd", "if=/dev/zero", "of="+node, "bs=1M", "count=4", "conv=fsync")
		}, block.Content{}}, // libblkid wants a protective MBR; Blank does not
		{"a byte that nobody knows", "dd", func(t *testing.T, node string) {
			f, err := os.OpenFile(node, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{1}, 700_000); err != nil {
				t.Fatal(err)
			}
		}, block.Content{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			need(t, c.program)
			node, _ := loopDevice(t, size)
			c.make(t, node)
			got, err := prober(t).Probe(t.Context(), node)
			if err != nil {
				t.Fatal(err)
			}
			got.UUID = ""
			if got != c.want {
				t.Errorf("Probe = %+v, want %+v", got, c.want)
			}
			f, err := block.OpenReadOnly(node)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, blank, err := block.Blank(f, size); err != nil || blank {
				t.Errorf("Blank = %v, %v", blank, err)
			}
		})
	}
}

func TestProbeTellsEmptyFromMissing(t *testing.T) {
	t.Parallel()
	node, _ := loopDevice(t, 16<<20)
	p := prober(t)
	if content, err := p.Probe(t.Context(), node); err != nil || content != (block.Content{}) {
		t.Errorf("an empty device: %+v, %v", content, err)
	}
	if _, err := p.Probe(t.Context(), node+"-missing"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a device that is not there: %v, want ErrNotFound", err)
	}
	if _, err := p.Probe(t.Context(), "/dev/null"); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no block device: %v, want ErrInvalid", err)
	}
}

// exits is a host whose blkid exits with a code and says something.
type exits struct {
	code           int
	stdout, stderr string
}

func (e exits) Run(context.Context, hostexec.Command) (hostexec.Result, error) {
	result := hostexec.Result{Stdout: []byte(e.stdout), Stderr: []byte(e.stderr), ExitCode: e.code}
	if e.code == 0 {
		return result, nil
	}
	return result, &hostexec.ExitError{Command: "blkid", ExitCode: e.code, Stderr: e.stderr}
}

func TestProbeExitCodes(t *testing.T) {
	t.Parallel()
	node, _ := loopDevice(t, 1<<20)
	cases := []struct {
		name    string
		blkid   exits
		want    block.Content
		wantErr bool
	}{
		{"nothing", exits{code: 2}, block.Content{}, false},
		{"nothing, with a complaint", exits{code: 2, stderr: "blkid: error: /dev/x: Input/output error"}, block.Content{}, true},
		{"contradictions", exits{code: 8}, block.Content{Found: true, Ambivalent: true}, false},
		{"an error", exits{code: 4}, block.Content{}, true},
		{"killed", exits{code: -1}, block.Content{}, true},
		{"only an entry in a table", exits{stdout: "DEVNAME=/dev/x\nPART_ENTRY_UUID=1\n"}, block.Content{}, false},
		{"something unheard of", exits{stdout: "NEW=thing\n"}, block.Content{Found: true}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := block.Prober{Runner: c.blkid}.Probe(t.Context(), node)
			if got != c.want || (err != nil) != c.wantErr {
				t.Errorf("Probe = %+v, %v, want %+v, error %v", got, err, c.want, c.wantErr)
			}
		})
	}
}

func TestVolumeGroupOnDisk(t *testing.T) {
	t.Parallel()
	need(t, "lvm")
	node, _ := loopDevice(t, 64<<20)
	config := "devices{use_devicesfile=0 filter=[\"a|^" + node + "$|\",\"r|.*|\"]} global{use_lvmpolld=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}"
	f, err := block.OpenReadOnly(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if name := block.VolumeGroupOnDisk(f); name != "" {
		t.Errorf("an empty disk is in group %q", name)
	}
	run(t, "lvm", "pvcreate", "--config", config, node)
	if name := block.VolumeGroupOnDisk(f); name != "" {
		t.Errorf("a physical volume without a group is in group %q", name)
	}
	run(t, "lvm", "vgcreate", "--config", config, "customer.data-1", node)
	if name := block.VolumeGroupOnDisk(f); name != "customer.data-1" {
		t.Errorf("the group is %q", name)
	}
}

func FuzzVolumeGroupOnDisk(f *testing.F) {
	f.Add([]byte("LABELONE"))
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := make([]byte, 8192)
		copy(disk, "LABELONE")
		copy(disk[24:], "LVM2 001")
		copy(disk[20:24], data)
		copy(disk[32:], data)
		block.VolumeGroupOnDisk(readerAt(disk))
	})
}

type readerAt []byte

func (r readerAt) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset >= int64(len(r)) {
		return 0, errMedium
	}
	return copy(p, r[offset:]), nil
}
