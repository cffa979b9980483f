// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// withoutDeviceMapper lets the real lvm work on metadata alone, so that what it
// writes and reports can be tested on a kernel without device-mapper.
type withoutDeviceMapper struct {
	host *hostexec.Host
}

func (w *withoutDeviceMapper) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	// No copies either: they would stay on the machine.
	const config = "global{activation=0} backup{archive=0 backup=0}"
	if len(cmd.Args) > 0 {
		i := slices.Index(cmd.Args, "--config")
		if i < 0 {
			cmd.Args = slices.Insert(slices.Clone(cmd.Args), 1, "--config", config)
		} else {
			cmd.Args = slices.Clone(cmd.Args)
			cmd.Args[i+1] += " " + config
		}
		return w.host.Run(ctx, cmd)
	}
	var input bytes.Buffer
	for line := range strings.Lines(string(cmd.Stdin)) {
		name, rest, _ := strings.Cut(line, " ")
		rest = strings.ReplaceAll(rest, "--activate y", "--activate n")
		if rest, ok := strings.CutPrefix(rest, "--config '"); ok {
			fmt.Fprintf(&input, "%s --config '%s %s", name, config, rest)
			continue
		}
		fmt.Fprintf(&input, "%s --config '%s' %s", name, config, rest)
	}
	cmd.Stdin = input.Bytes()
	return w.host.Run(ctx, cmd)
}

// anyNodes stands in for the kernel: every volume is active and as large as asked.
type anyNodes struct{ lvm.Nodes }

func (anyNodes) Find(context.Context, lvm.NodeID) (volume.Location, bool, error) {
	return volume.Location{Device: "/dev/null", SizeBytes: 1 << 50}, true, nil
}

func (anyNodes) Clear(context.Context, volume.Location) error { return nil }

func (anyNodes) Wipe(context.Context, volume.Location, volume.WipePolicy) error { return nil }

// loopDisk returns a blank disk of the host, made of a file.
func loopDisk(t *testing.T, sizeBytes int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for loop devices")
	}
	if _, err := exec.LookPath("lvm"); err != nil {
		t.Skip("needs lvm2 on the host")
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, sizeBytes); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("needs a free loop device: %v", err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", path, err, out)
		}
	})
	return path
}

// head reads the first MiB of a disk.
func head(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	if _, err := io.ReadFull(f, data); err != nil {
		t.Fatal(err)
	}
	return data
}

func metadataClient(t *testing.T) *lvm.Client {
	t.Helper()
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return lvm.NewClient(&withoutDeviceMapper{host: host}, lvm.DiskFlusher("/"))
}

const (
	gib     = 1 << 30
	realUID = "5e000000-0000-4000-8000-00000000beef"
)

// The real lvm makes, extends, finds and removes a volume group, and says in its
// reports and on the disk what we read there.
func TestRealMetadata(t *testing.T) {
	disk, second := loopDisk(t, gib), loopDisk(t, gib)
	client := metadataClient(t)
	spec := lvm.GroupSpec{Name: "berth-metadata-test", PoolUID: realUID, PoolSet: "a set", Devices: []string{disk}}
	g, err := client.CreateGroup(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.RemoveGroup(context.Background(), g.UUID, realUID, nil); err != nil {
			t.Error(err)
		}
		if bytes.Contains(head(t, disk), []byte("LABELONE")) {
			t.Errorf("%s still has a label of lvm", disk)
		}
	})
	if again, err := client.CreateGroup(t.Context(), spec); err != nil || again.UUID != g.UUID {
		t.Fatalf("CreateGroup again = %+v, %v, want %s", again, err, g.UUID)
	}
	if g.MetadataBytes < 63<<20 || g.ExtentBytes != 4<<20 || g.State() != lvm.StateReady {
		t.Fatalf("the group is %+v", g)
	}
	if found, err := client.FindGroup(t.Context(), realUID); err != nil || found.UUID != g.UUID {
		t.Fatalf("FindGroup = %+v, %v", found, err)
	}
	other := spec
	other.PoolUID, other.Devices = "5e000000-0000-4000-8000-00000000dead", []string{second}
	if _, err := client.CreateGroup(t.Context(), other); !errors.Is(err, volume.ErrExists) {
		t.Fatalf("CreateGroup of another pool with the same name = %v, want ErrExists", err)
	}
	if _, err := client.FindGroup(t.Context(), other.PoolUID); !errors.Is(err, volume.ErrNotFound) {
		t.Fatalf("FindGroup of a pool that has none = %v, want ErrNotFound", err)
	}

	backend, err := lvm.NewBackend(client, lvm.Options{
		GroupName: g.Name, GroupUUID: g.UUID, Nodes: anyNodes{}, Devices: func() []string { return []string{disk, second} },
	})
	if err != nil {
		t.Fatal(err)
	}
	recs := map[string]volume.Record{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for n := range 40 {
		wg.Go(func() {
			id := fmt.Sprintf("5e000000-0000-4000-8000-%012d", n)
			rec, err := backend.Create(t.Context(), volume.Spec{
				ID: id, Name: "pvc with spaces; and 'quotes' $HOME", SizeBytes: 5 << 20, Access: volume.AccessBlock,
			})
			if err != nil {
				t.Errorf("Create(%d): %v", n, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			recs[id] = rec
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if found, err := backend.List(t.Context()); err != nil || len(found) != len(recs) {
		t.Fatalf("List = %d volumes, %v", len(found), err)
	}
	spec.Devices = append(spec.Devices, second)
	if g, err = client.ExtendGroup(t.Context(), g.UUID, spec); err != nil || len(g.PVs) != 2 {
		t.Fatalf("ExtendGroup = %+v, %v", g, err)
	}
	if err := client.RemoveGroup(t.Context(), g.UUID, realUID, nil); !errors.Is(err, volume.ErrInUse) {
		t.Fatalf("RemoveGroup with volumes = %v, want ErrInUse", err)
	}
	c, err := backend.Capacity(t.Context())
	if err != nil || c.TotalBytes < 3*gib/2 || c.Volumes != len(recs) || c.AllocatedBytes != int64(len(recs))*8<<20 {
		t.Fatalf("Capacity after the group was extended = %+v, %v", c, err)
	}
	for id, rec := range recs {
		wg.Go(func() {
			grown, err := backend.Grow(t.Context(), id, rec, 9<<20)
			if err != nil || grown.SizeBytes != 12<<20 {
				t.Errorf("Grow = %+v, %v", grown, err)
			}
			if err := backend.Delete(t.Context(), id, &rec, volume.WipeZero); err != nil {
				t.Errorf("Delete: %v", err)
			}
		})
	}
	wg.Wait()
	if found, err := backend.List(t.Context()); err != nil || len(found) != 0 {
		t.Fatalf("List = %v, %v, want nothing", found, err)
	}
}

// The reader of the generation on disk agrees with lvm's report, change by change.
func TestRealSeqno(t *testing.T) {
	disk := loopDisk(t, gib)
	client := metadataClient(t)
	g, err := client.CreateGroup(t.Context(), lvm.GroupSpec{Name: "berth-seqno-test", PoolUID: realUID, Devices: []string{disk}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.RemoveGroup(context.Background(), g.UUID, realUID, nil); err != nil {
			t.Error(err)
		}
	})
	read := lvm.DiskSeqno("/")
	for n := range 5 {
		uuid, seqno, ok, err := read(disk)
		if err != nil || !ok || uuid != g.UUID || seqno != g.Seqno {
			t.Fatalf("after %d changes the disk says %s %d (%v, %v), lvm %s %d", n, uuid, seqno, ok, err, g.UUID, g.Seqno)
		}
		out, err := exec.CommandContext(t.Context(), "lvm", "vgchange", "--autobackup", "n", "--config", "global{activation=0}", "--addtag", fmt.Sprint("change", n), g.Name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if g, err = client.FindGroup(t.Context(), realUID); err != nil {
			t.Fatal(err)
		}
	}
	if g.Seqno < 6 {
		t.Fatalf("the group's generation is %d after 5 changes", g.Seqno)
	}
}

// lvm itself refuses a disk on which it finds anything, and we leave it at that.
func TestRealForeignContent(t *testing.T) {
	client := metadataClient(t)
	for _, mkfs := range [][]string{
		{"mkfs.ext4", "-q"}, {"mkswap"}, {"lvm", "pvcreate", "--config", "global{activation=0}"},
	} {
		t.Run(mkfs[0], func(t *testing.T) {
			disk := loopDisk(t, 96<<20)
			if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], disk)...).CombinedOutput(); err != nil {
				t.Skipf("%v: %s", err, out)
			}
			before, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.CreateGroup(t.Context(), lvm.GroupSpec{Name: "berth-foreign-test", PoolUID: realUID, Devices: []string{disk}})
			if !errors.Is(err, volume.ErrNotBlank) {
				t.Errorf("CreateGroup on %s = %v, want ErrNotBlank", mkfs[0], err)
			}
			after, err := os.ReadFile(disk)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the disk was changed (%v)", err)
			}
		})
	}
}
