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

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestMountTable(t *testing.T) {
	t.Parallel()
	const base = `22 1 253:0 / / rw - ext4 /dev/vda rw
30 22 0:26 / /proc rw - proc proc rw
41 22 253:16 / /srv/fast rw - xfs /dev/vdb rw
42 22 253:32 /@pools /srv/sub rw - btrfs /dev/vdc rw
`
	for _, test := range []struct {
		name, more, dir string
		want            bool
	}{
		{name: "nothing", dir: "/srv/fast/volumes/a"},
		{
			name: "bind mount into a pod", dir: "/srv/fast/volumes/a", want: true,
			more: "50 22 253:16 /volumes/a /var/lib/kubelet/pods/1/volumes/mount rw - xfs /dev/vdb rw\n",
		},
		{
			name: "bind mount of a subPath", dir: "/srv/fast/volumes/a", want: true,
			more: "50 22 253:16 /volumes/a/db/data /var/lib/kubelet/pods/1/volume-subpaths/0 rw - xfs /dev/vdb rw\n",
		},
		{
			name: "bind mount of a volume whose name begins alike", dir: "/srv/fast/volumes/a",
			more: "50 22 253:16 /volumes/ab /var/lib/kubelet/pods/1/volumes/mount rw - xfs /dev/vdb rw\n",
		},
		{
			name: "the same path on another filesystem", dir: "/srv/fast/volumes/a",
			more: "50 22 253:48 /volumes/a /mnt rw - xfs /dev/vdd rw\n",
		},
		{
			name: "something mounted on it", dir: "/srv/fast/volumes/a", want: true,
			more: "50 41 0:99 / /srv/fast/volumes/a rw - tmpfs tmpfs rw\n",
		},
		{
			name: "something mounted in it", dir: "/srv/fast/volumes/a", want: true,
			more: "50 41 0:99 / /srv/fast/volumes/a/x/y rw - tmpfs tmpfs rw\n",
		},
		{
			name: "something mounted beside it", dir: "/srv/fast/volumes/a",
			more: "50 41 0:99 / /srv/fast/volumes/ab rw - tmpfs tmpfs rw\n",
		},
		{
			name: "a subvolume", dir: "/srv/sub/volumes/a", want: true,
			more: "50 22 253:32 /@pools/volumes/a /mnt rw - btrfs /dev/vdc rw\n",
		},
		{
			name: "on the host's own filesystem", dir: "/var/lib/berth/volumes/a", want: true,
			more: "50 22 253:0 /var/lib/berth/volumes/a /mnt rw - ext4 /dev/vda rw\n",
		},
		{
			name: "a mount point with a blank", dir: "/srv/fast/volumes/a b", want: true,
			more: "50 41 0:99 / /srv/fast/volumes/a\\040b rw - tmpfs tmpfs rw\n",
		},
		{
			name: "two on one mount point", dir: "/srv/fast/volumes/a", want: true,
			more: "45 41 253:64 /top /srv/fast rw - xfs /dev/vde rw\n50 22 253:64 /top/volumes/a /mnt rw - xfs /dev/vde rw\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := path.Join(t.TempDir(), "mountinfo")
			must(t, os.WriteFile(file, []byte(base+test.more), 0o600))
			got, err := hostpath.MountTable(file).InUse(test.dir)
			if err != nil || got != test.want {
				t.Fatalf("InUse(%s) = %v, %v, want %v", test.dir, got, err, test.want)
			}
			if got, err := hostpath.MountTable(file).Written(test.dir); err != nil || got != test.want {
				t.Fatalf("Written(%s) = %v, %v, want %v", test.dir, got, err, test.want)
			}
			must(t, os.WriteFile(file, []byte(base+strings.ReplaceAll(test.more, " rw - ", " ro,relatime - ")), 0o600))
			if got, err := hostpath.MountTable(file).Written(test.dir); err != nil || got {
				t.Fatalf("Written(%s) = %v, %v where it is mounted read-only", test.dir, got, err)
			}
		})
	}
	const root = "/proc/1/root"
	if got := hostpath.HostMounts(root); got != root+"/proc/1/mountinfo" {
		t.Errorf("the host's mount table is looked for in %s", got)
	}
	if _, err := hostpath.MountTable(path.Join(t.TempDir(), "absent")).InUse("/srv"); err == nil {
		t.Error("a mount table that is not there says that nothing is in use")
	}
	file := path.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := hostpath.MountTable(file).InUse("/srv"); err == nil {
		t.Error("a mount table that is empty says that nothing is in use")
	}
}

// FuzzMountTable: no table makes the reader panic, and none that cannot be read
// makes a directory unused.
func FuzzMountTable(f *testing.F) {
	f.Add("22 1 253:0 / / rw - ext4 /dev/vda rw\n", "/srv/a")
	f.Add("22 1 253:0 / / rw shared:1 master:2 - ext4 /dev/vda rw\n23 22 253:0 /srv/a /mnt\\040x rw - ext4 x rw", "/srv/a")
	f.Add("x", "/")
	f.Fuzz(func(t *testing.T, table, dir string) {
		file := path.Join(t.TempDir(), "mountinfo")
		must(t, os.WriteFile(file, []byte(table), 0o600))
		used, err := hostpath.MountTable(file).InUse(path.Join("/", dir))
		if used && err != nil {
			t.Fatalf("InUse returned both an answer and %v", err)
		}
	})
}

// The table of the machine itself, with a real bind mount of a volume and of a
// directory in it.
func TestDeleteOfAMountedVolume(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := path.Join(t.TempDir(), "pool")
	id, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
	must(t, err)
	b, err := hostpath.New(hostpath.Options{Where: hostpath.Where{Root: root}, RootID: id, PoolUID: poolUID})
	must(t, err)
	rec, err := b.Create(t.Context(), spec(1, 1))
	must(t, err)
	dir := path.Join(root, rec.Hostpath.Directory)
	writeFile(t, path.Join(dir, "sub/file"), "alive")
	before := snapshot(t, root)
	for _, from := range []string{dir, path.Join(dir, "sub")} {
		target := t.TempDir()
		mountBind(t, from, target)
		if err := b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero); !errors.Is(err, volume.ErrInUse) {
			t.Fatalf("Delete while %s is mounted = %v, want ErrInUse", from, err)
		}
		if after := snapshot(t, root); after != before {
			t.Fatalf("a refused Delete changed the root from\n%s\nto\n%s", before, after)
		}
		must(t, unix.Unmount(target, 0))
	}
	must(t, b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
}

// A link above the root hides no mount: ostree has /srv as a link to var/srv, and the mount
// table knows no links.
func TestMountedBelowALink(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]struct{ at, to, root string }{
		"relative":          {"srv", "var/srv", "/srv/pool"},
		"with dots":         {"usr/local", "../var/srv", "/usr/local/pool"},
		"over another link": {"opt", "var/other/x/..", "/opt/pool"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := t.TempDir()
			for _, dir := range []string{"usr", "proc/1", "var/srv/x"} {
				must(t, os.MkdirAll(path.Join(host, dir), 0o755))
			}
			must(t, os.Symlink("srv", path.Join(host, "var/other")))
			must(t, os.Symlink(link.to, path.Join(host, link.at)))
			where := hostpath.Where{Root: link.root, HostRoot: host}
			rootID, err := hostpath.Init(t.Context(), where, poolUID)
			must(t, err)
			b, err := hostpath.New(hostpath.Options{Where: where, RootID: rootID, PoolUID: poolUID})
			must(t, err)
			rec, err := b.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: 4096, Access: volume.AccessFilesystem})
			must(t, err)
			table := "22 1 253:0 / / rw - ext4 /dev/vda rw\n"
			must(t, os.WriteFile(path.Join(host, "proc/1/mountinfo"), []byte(table+
				"50 22 253:0 /var/srv/pool/volumes/"+volumetest.ID(1)+" /var/lib/kubelet/pods/1/volumes/data rw - ext4 /dev/vda rw\n"), 0o600))
			if err := b.ProveUnused(t.Context(), volumetest.ID(1), rec); !errors.Is(err, volume.ErrInUse) {
				t.Errorf("ProveUnused = %v, want ErrInUse", err)
			}
			if err := b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero); !errors.Is(err, volume.ErrInUse) {
				t.Fatalf("Delete = %v, want ErrInUse", err)
			}
			if _, err := os.Stat(path.Join(host, "var/srv/pool/volumes", volumetest.ID(1))); err != nil {
				t.Fatal(err)
			}
			must(t, os.WriteFile(path.Join(host, "proc/1/mountinfo"), []byte(table), 0o600))
			must(t, b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
		})
	}
}
