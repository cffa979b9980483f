// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// loopFile is a disk image that is attached and detached as a disk is plugged.
type loopFile struct {
	t    testing.TB
	file string
	node string
}

func newLoopFile(t testing.TB) *loopFile {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	l := &loopFile{t: t, file: file}
	t.Cleanup(func() {
		if l.node != "" {
			l.detach()
		}
	})
	return l
}

func (l *loopFile) attach() {
	l.t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", l.file).CombinedOutput()
	if err != nil {
		l.t.Skipf("no loop device to be had: %v: %s", err, out)
	}
	l.node = strings.TrimSpace(string(out))
}

func (l *loopFile) detach() {
	l.t.Helper()
	if out, err := exec.Command("losetup", "--detach", l.node).CombinedOutput(); err != nil {
		l.t.Errorf("detach %s: %v: %s", l.node, err, out)
	}
	l.node = ""
}

// changed sends the event that udev sends when a writer closes a device; this
// machine may have no udev.
func (l *loopFile) changed() {
	l.t.Helper()
	if err := os.WriteFile("/sys/class/block/"+filepath.Base(l.node)+"/uevent", []byte("change"), 0); err != nil {
		l.t.Fatal(err)
	}
}

func (l *loopFile) name() string {
	return block.Name(testNode, block.Identity{Scheme: block.SchemeLoopFile, Value: l.file + "@0"})
}

// startLive runs an inventory over the real devices of this machine. Its filters
// keep loop devices alone.
func startLive(t testing.TB, c client.WithWatch) *Inventory {
	t.Helper()
	return startLiveAt(t, c, "/")
}

func startLiveAt(t testing.TB, c client.WithWatch, hostRoot string) *Inventory {
	t.Helper()
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := New(Options{
		NodeName: testNode, MachineID: "machine-1", Namespace: "berth-system", HostRoot: hostRoot,
		Client: c, Reader: c, Recorder: &recorder{}, Runner: host, Log: logr.Discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := inv.SetConfig(config("filterconfigs: [{key: path-filter, state: true, include: /dev/loop}]")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- inv.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	if err := inv.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return inv
}

// await waits, woken by the inventory, until an object is as wanted.
func await(t testing.TB, inv *Inventory, name, what string, want func(*v1alpha1.BlockDevice) bool) *v1alpha1.BlockDevice {
	t.Helper()
	changed, cancel := inv.Subscribe()
	defer cancel()
	deadline := time.After(20 * time.Second)
	for {
		var object *v1alpha1.BlockDevice
		inv.mu.Lock()
		if d := inv.disks[name]; d != nil {
			object = d.object
		}
		inv.mu.Unlock()
		if object != nil && want(object) {
			return object
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: the object is %+v", what, object)
		}
	}
}

func reasonIs(reason string) func(*v1alpha1.BlockDevice) bool {
	return func(bd *v1alpha1.BlockDevice) bool { return condition(&bd.Status).Reason == reason }
}

func TestHotplugOfARealDevice(t *testing.T) {
	disk := newLoopFile(t)
	inv := startLive(t, newFakeClient(t))
	disk.attach()
	bd := await(t, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonBlank))
	if bd.Status.Path != disk.node || bd.Status.SizeBytes != 64<<20 || bd.Status.DeviceType != "loop" {
		t.Errorf("%+v", bd.Status)
	}

	if out, err := exec.Command("mkfs.ext4", "-q", "-L", "files", disk.node).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	disk.changed()
	bd = await(t, inv, disk.name(), "formatted", reasonIs(v1alpha1.ReasonHasContent))
	if c := condition(&bd.Status); c.Message != `holds ext4 "files" since before Berth; wipe it to use it` {
		t.Errorf("message %q", c.Message)
	}
	if bd.Status.Filesystem == nil || bd.Status.Filesystem.Type != "ext4" || bd.Status.Filesystem.Label != "files" {
		t.Errorf("filesystem %+v", bd.Status.Filesystem)
	}

	disk.detach()
	await(t, inv, disk.name(), "detached", func(bd *v1alpha1.BlockDevice) bool { return bd.Status.State == v1alpha1.DeviceInactive })
	if _, err := inv.Resolve(t.Context(), disk.name()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Resolve: %v, want ErrNotFound", err)
	}

	disk.attach()
	await(t, inv, disk.name(), "attached again", func(bd *v1alpha1.BlockDevice) bool {
		return bd.Status.State == v1alpha1.DeviceActive && bd.Status.Path == disk.node
	})
}

// BenchmarkRealHotplug attaches a loop device, and detaches it, and reports the median
// and the 95th percentile of the time from each to the object that says so. The next
// disk has another name: one object is written at most once a second.
func BenchmarkRealHotplug(b *testing.B) {
	inv := startLive(b, newFakeClient(b))
	var plugged, pulled []float64
	for b.Loop() {
		disk := newLoopFile(b)
		began := time.Now()
		disk.attach()
		await(b, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonBlank))
		plugged = append(plugged, time.Since(began).Seconds()*1000)
		<-time.After(writeInterval)
		began = time.Now()
		disk.detach()
		await(b, inv, disk.name(), "detached", func(bd *v1alpha1.BlockDevice) bool { return bd.Status.State == v1alpha1.DeviceInactive })
		pulled = append(pulled, time.Since(began).Seconds()*1000)
	}
	for name, times := range map[string][]float64{"plugged": plugged, "pulled": pulled} {
		slices.Sort(times)
		b.ReportMetric(times[len(times)/2], name+"-median-ms")
		b.ReportMetric(times[len(times)*95/100], name+"-p95-ms")
	}
}

// No event tells of a mount: it is seen all the same, and soon.
func TestMountOfARealDevice(t *testing.T) {
	disk := newLoopFile(t)
	if out, err := exec.Command("mkfs.ext4", "-q", disk.file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	disk.attach()
	// The mount table of this process, which may not be that of the first.
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"proc/1": "/proc/self", "proc/swaps": "/proc/swaps", "sys": "/sys", "dev": "/dev", "run": "/run"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	inv := startLiveAt(t, newFakeClient(t), root)
	await(t, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonHasContent))

	directory := t.TempDir()
	if err := unix.Mount(disk.node, directory, "ext4", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	mounted := true
	defer func() {
		if mounted {
			_ = unix.Unmount(directory, unix.MNT_DETACH)
		}
	}()
	bd := await(t, inv, disk.name(), "mounted", reasonIs(v1alpha1.ReasonInUse))
	if c := condition(&bd.Status); c.Message != "mounted at "+directory {
		t.Errorf("message %q", c.Message)
	}
	if err := unix.Unmount(directory, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	await(t, inv, disk.name(), "unmounted", reasonIs(v1alpha1.ReasonHasContent))
}

func TestClaimForPoolReadsTheDisk(t *testing.T) {
	disk := newLoopFile(t)
	disk.attach()
	inv := startLive(t, newFakeClient(t))
	await(t, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonBlank))
	pool := &v1alpha1.Pool{}
	pool.Name, pool.UID = "fast-node1", "pool-uid"
	f, err := os.OpenFile(disk.node, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// No event yet: discovery still takes the disk for blank.
	if _, err := f.WriteAt([]byte{1}, 64<<20-1); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.ClaimForPool(t.Context(), disk.name(), pool); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("a byte at the very end: %v, want ErrNotBlank", err)
	}
	if _, err := f.WriteAt([]byte{0}, 64<<20-1); err != nil {
		t.Fatal(err)
	}
	// A target of the node's that exports the disk has it open, which keeps the page cache,
	// and writes past that (drivers/nvme/target/io-cmd-bdev.c).
	if e := inv.examiner.examine(t.Context(), inv.mirrored(disk.node)); !e.blank {
		t.Fatalf("blank again: %+v", e)
	}
	behind, err := os.OpenFile(disk.file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close()
	if _, err := behind.WriteAt([]byte{1}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.ClaimForPool(t.Context(), disk.name(), pool); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("a byte that the page cache does not have: %v, want ErrNotBlank", err)
	}
	if _, err := behind.WriteAt([]byte{0}, 1<<20); err != nil {
		t.Fatal(err)
	}
	claimed, err := inv.ClaimForPool(t.Context(), disk.name(), pool)
	if err != nil || claimed.Owner.Kind != "Pool" {
		t.Errorf("ClaimForPool = %+v, %v", claimed, err)
	}
}

// mirrored is what the inventory has read of a device.
func (inv *Inventory) mirrored(node string) *block.Device {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return inv.devices[filepath.Base(node)]
}

// TestDiscoveryWritesNothing is I1: a disk with content, seen, judged, probed and
// resolved many times, is bit-identical, and the kernel counts no write.
func TestDiscoveryWritesNothing(t *testing.T) {
	disk := newLoopFile(t)
	if out, err := exec.Command("mkfs.ext4", "-q", disk.file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	disk.attach()
	sum := func() [32]byte {
		content, err := os.ReadFile(disk.file)
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(content)
	}
	// Fields 5 to 8 of the statistics are writes, 12 to 15 discards, 16 and 17 flushes
	// (Documentation/block/stat.rst).
	writes := func() string {
		stat, err := os.ReadFile("/sys/class/block/" + filepath.Base(disk.node) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat))
		return strings.Join(append(fields[4:8:8], fields[11:]...), " ")
	}
	sumBefore, writesBefore := sum(), writes()
	inv := startLive(t, newFakeClient(t))
	await(t, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonHasContent))
	for range 20 {
		if _, err := inv.rescan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := inv.Resolve(t.Context(), disk.name()); err != nil {
			t.Fatal(err)
		}
		if e := inv.examiner.examine(t.Context(), inv.mirrored(disk.node)); e.err != nil || e.found.Type != "ext4" {
			t.Fatalf("examination: %+v", e)
		}
	}
	if got := writes(); got != writesBefore {
		t.Errorf("the kernel counted writes: %s, before %s", got, writesBefore)
	}
	if sum() != sumBefore {
		t.Error("the disk has changed")
	}
}

// TestStormOfEvents sends events as fast as the kernel takes them, for a disk that
// looks different each time, and counts what comes of it.
func TestStormOfEvents(t *testing.T) {
	disk := newLoopFile(t)
	disk.attach()
	var writes atomic.Int64
	count := func(bd client.Object) {
		if bd.GetName() == disk.name() {
			writes.Add(1)
		}
	}
	c := interceptor.NewClient(newFakeClient(t), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			count(o)
			return c.Create(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			count(o)
			return c.Patch(ctx, o, patch, opts...)
		},
	})
	inv := startLive(t, c)
	await(t, inv, disk.name(), "attached", reasonIs(v1alpha1.ReasonBlank))
	f, err := os.OpenFile(disk.node, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	began := time.Now()
	before := writes.Load()
	for i := range 10_000 {
		if i%100 == 0 {
			if _, err := f.WriteAt([]byte{byte(i / 100 % 2)}, 4096); err != nil {
				t.Fatal(err)
			}
		}
		disk.changed()
	}
	if _, err := f.WriteAt([]byte{7}, 4096); err != nil {
		t.Fatal(err)
	}
	disk.changed()
	await(t, inv, disk.name(), "after the storm", reasonIs(v1alpha1.ReasonHasContent))
	seconds := int64(time.Since(began)/time.Second) + 1
	if n := writes.Load() - before; n > seconds+1 {
		t.Errorf("%d writes in %d seconds", n, seconds)
	}
}
