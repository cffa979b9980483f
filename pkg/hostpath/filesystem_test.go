// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const (
	uuidHere  = "0a0b0c0d-1111-4111-8111-111111111111"
	uuidThere = "0a0b0c0d-2222-4222-8222-222222222222"
)

// onFilesystem is a root on a filesystem of that UUID, or of that error.
func onFilesystem(root, uuid string, err error) hostpath.Where {
	return hostpath.Where{Root: root, FilesystemUUID: func(int) (string, error) { return uuid, err }}
}

// A root whose marker was copied to another filesystem is not the root, and is left as it is.
// Where the UUID is not known, then or now, the marker alone counts.
func TestRootOfAnotherFilesystem(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		made, now string
		err, want error
	}{
		"the same":                       {made: uuidHere, now: uuidHere},
		"another one":                    {made: uuidHere, now: uuidThere, want: volume.ErrIdentity},
		"of an older agent":              {made: "", now: uuidHere},
		"on an older kernel":             {made: uuidHere, now: ""},
		"on one that has none":           {made: "", now: ""},
		"that does not answer":           {made: uuidHere, err: unix.EIO, want: unix.EIO},
		"that answers and was not asked": {made: "", err: unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := path.Join(t.TempDir(), "pool")
			id, err := hostpath.Init(t.Context(), onFilesystem(root, test.made, nil), poolUID)
			must(t, err)
			data, err := os.ReadFile(path.Join(root, ".berth/root.json"))
			must(t, err)
			var marker map[string]string
			must(t, json.Unmarshal(data, &marker))
			if marker["filesystemUUID"] != test.made {
				t.Errorf("the marker is %s", data)
			}
			open := func(uuid string, err error) *hostpath.Backend {
				b, newErr := hostpath.New(hostpath.Options{Where: onFilesystem(root, uuid, err), RootID: id, PoolUID: poolUID})
				must(t, newErr)
				return b
			}
			rec, err := open(test.made, nil).Create(t.Context(), spec(1, 1))
			must(t, err)
			before := snapshot(t, root)
			b := open(test.now, test.err)
			for call, err := range map[string]error{
				"Init":   errOf(hostpath.Init(t.Context(), onFilesystem(root, test.now, test.err), poolUID)),
				"Locate": errOf(b.Locate(t.Context(), volumetest.ID(1), rec)),
				"List":   errOf(b.List(t.Context())),
			} {
				if !errors.Is(err, test.want) || errors.Is(err, volume.ErrNotFound) {
					t.Errorf("%s = %v, want %v", call, err, test.want)
				}
				if errors.Is(test.want, volume.ErrIdentity) && !strings.Contains(err.Error(), uuidHere) {
					t.Errorf("%s does not say which it should be: %v", call, err)
				}
			}
			if test.want == nil {
				return
			}
			for call, err := range map[string]error{
				"Create":     errOf(b.Create(t.Context(), spec(2, 1))),
				"Delete":     b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone),
				"EmptyTrash": hostpath.EmptyTrash(b, t.Context()),
			} {
				if !errors.Is(err, test.want) {
					t.Errorf("%s = %v, want %v", call, err, test.want)
				}
			}
			if got := snapshot(t, root); got != before {
				t.Errorf("it was\n%s\nand is\n%s", before, got)
			}
		})
	}
}

func errOf[T any](_ T, err error) error { return err }

// Nothing is made on a filesystem that does not say which it is.
func TestInitOfUnknownFilesystem(t *testing.T) {
	t.Parallel()
	root := path.Join(t.TempDir(), "pool")
	must(t, os.Mkdir(root, 0o755))
	if _, err := hostpath.Init(t.Context(), onFilesystem(root, "", unix.EIO), poolUID); !errors.Is(err, unix.EIO) {
		t.Errorf("Init = %v", err)
	}
	if got := snapshot(t, root); got != "" {
		t.Errorf("it has made\n%s", got)
	}
}

func TestSizesOfAnswers(t *testing.T) {
	t.Parallel()
	for name, size := range map[string][2]uintptr{
		"fsuuid2":                  {unsafe.Sizeof(hostpath.AnyUUID{}), 17},
		"fsuuid of ext4":           {unsafe.Sizeof(hostpath.Ext4UUID{}), 8 + 16},
		"xfs_fsop_geom_v1":         {unsafe.Sizeof(hostpath.XFSInfo{}), 112},
		"btrfs_ioctl_fs_info_args": {unsafe.Sizeof(hostpath.BtrfsInfo{}), 1024},
	} {
		if size[0] != size[1] {
			t.Errorf("%s has %d bytes, want %d", name, size[0], size[1])
		}
	}
}

// The UUID is the one that blkid shows, and a root that was copied to where its filesystem was
// mounted is not taken for it.
func TestKernelFilesystem(t *testing.T) {
	for name, mkfs := range kernelUUIDs {
		t.Run(name, func(t *testing.T) {
			p := kernelPool(t, mkfs...)
			disk, _, _ := strings.Cut(os.Getenv(testDiskEnv), ",")
			out, err := exec.CommandContext(t.Context(), "blkid", "-p", "-s", "UUID", "-o", "value", disk).Output()
			must(t, err)
			dir, err := os.Open(p.root)
			must(t, err)
			uuid, err := hostpath.KernelUUID(int(dir.Fd()))
			if want := strings.TrimSpace(string(out)); err != nil || uuid != want || uuid == "" || dir.Close() != nil {
				t.Fatalf("UUID %q, %v, want %q", uuid, err, want)
			}
			rec, err := p.backend.Create(t.Context(), spec(1, mib))
			must(t, err)
			must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
			p.settle(t)
			_, err = p.backend.Create(t.Context(), spec(2, mib))
			must(t, err)

			// As one that somebody has restored to the disk of the host is.
			copied := path.Join(t.TempDir(), "pool")
			if out, err := exec.CommandContext(t.Context(), "cp", "-a", p.root, copied).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			here, err := os.Open(copied)
			must(t, err)
			defer here.Close()
			if uuid, err := hostpath.KernelUUID(int(here.Fd())); err != nil || uuid == "" {
				t.Skipf("the copy is on a filesystem without a UUID: %v", err)
			}
			b, err := hostpath.New(hostpath.Options{Where: hostpath.Where{Root: copied}, RootID: p.rootID, PoolUID: poolUID})
			must(t, err)
			if _, err := b.List(t.Context()); !errors.Is(err, volume.ErrIdentity) || !strings.Contains(err.Error(), uuid) {
				t.Errorf("List of a copy = %v", err)
			}
		})
	}
}
