// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/cgroup/cgrouptest"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const (
	mib     = int64(1) << 20
	lvUID   = "00000000-0000-4000-8000-000000000001"
	lvName  = "pvc-1"
	machine = "0123456789abcdef0123456789abcdef"
)

var errKilled = errors.New("the process was killed here")

// killer kills the process at the n-th of all the steps that leave something behind.
// From there on nothing has an effect until the next process.
type killer struct {
	mu     sync.Mutex
	left   int // negative: never
	killed bool
}

func (k *killer) arm(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left, k.killed = n, false
}

func (k *killer) step() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.killed {
		return errKilled
	}
	if k.left == 0 {
		k.killed = true
		return errKilled
	}
	if k.left > 0 {
		k.left--
	}
	return nil
}

func (k *killer) died() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed
}

// host is a node with its API server: what outlives the agent's process.
type host struct {
	t         *testing.T
	killer    *killer
	memory    *volumetest.Memory
	ledgerDir string
	api       client.WithWatch
	writes    int // of the agent
	counting  sync.Mutex
	mkfs      int
	noMkfs    bool
	machineID string
	mounts    []string
	disks     volume.Backend // of mode device; nil for memory
	dirs      volume.Backend // of pool dirs; nil for memory
	groups    *cgrouptest.Tree
	follows   atomic.Int64
	news      newspaper
	vault     *vault

	// the present process
	agent    *VolumeReconciler
	backends *Backends
	sealer   *Sealer
	known    *Volumes
}

func newHost(t *testing.T, mode volume.Mode, objects ...client.Object) *host {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	h := &host{
		t: t, killer: &killer{left: -1}, ledgerDir: t.TempDir(), machineID: machine,
		memory: volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), Mode: mode, TotalBytes: 64 * mib, Remains: mode == volume.ModeLVM}),
		api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
			WithStatusSubresource(&v1alpha1.LocalVolume{}, &v1alpha1.Pool{}).Build(),
		groups: cgrouptest.New([]string{"cpu", "io", "memory"}, "253:3"),
	}
	h.vault = newVault(t, h.killer)
	h.groups.Fail = func(verb, _ string) error {
		if verb == "write" {
			return h.killer.step()
		}
		return nil
	}
	h.memory.SetHook(func(context.Context, volumetest.Step) error { return h.killer.step() })
	h.start()
	return h
}

// start begins a process over what the last one left.
func (h *host) start() {
	h.t.Helper()
	h.killer.arm(-1)
	book, err := ledger.Open(h.ledgerDir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.backends = NewBackends(h.memory)
	if h.disks != nil {
		h.backends = NewBackends(h.disks)
	}
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory})
	if h.dirs != nil {
		h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: h.dirs})
	} else {
		h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: h.memory})
	}
	h.backends.SetSynced()
	h.agent = &VolumeReconciler{
		Client: interceptor.NewClient(h.api, interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				return h.write(func() error { return c.Patch(ctx, o, p, opts...) })
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				return h.write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
			},
		}),
		Ledger: book,
		Carver: &Carver{
			Journal: killableJournal{book, h.killer}, Backends: h.backends,
			Formatter: formatter{h}, Tools: h, Mounts: h, MachineID: h.machineID, Locks: &Locks{},
		},
		SelectDisk: func(*v1alpha1.DeviceSelector) (func(volume.Disk) bool, error) {
			return nil, fmt.Errorf("bad glob: %w", volume.ErrInvalid)
		},
		Recorder: &h.news,
	}
	h.sealer = &Sealer{
		Ledger: killableJournal{book, h.killer}, Cryptsetup: h.vault, Formatter: formatter{h}, Filesystems: h, Log: slog.New(slog.DiscardHandler),
	}
	h.agent.Carver.Encrypted = h.sealer
	h.known = &Volumes{
		Ledger: book, Backends: h.backends, MachineID: h.machineID, Cache: h.api, CacheSynced: func() bool { return true }, Opened: h.sealer.Opened,
	}
	h.agent.Limiter = &Limiter{
		Ledger: killableJournal{book, h.killer}, Locate: h.known.Locate, Devices: h,
		Pods: cgroup.NewPods(h.groups), Events: h, Locks: h.agent.Carver.Locks, Failed: h.agent.Doubt, Log: slog.New(slog.DiscardHandler),
	}
}

// Follow implements PodEvents.
func (h *host) Follow(string) error { h.follows.Add(1); return nil }

func (h *host) write(f func() error) error {
	if err := h.killer.step(); err != nil {
		return err
	}
	h.counting.Lock()
	h.writes++
	h.counting.Unlock()
	if err := f(); err != nil {
		return err
	}
	return h.killer.step()
}

// LookPath implements Tools.
func (h *host) LookPath(_ context.Context, name string) (string, error) {
	if h.noMkfs {
		return "", fmt.Errorf("%s: %w", name, volume.ErrToolMissing)
	}
	return "/sbin/" + name, nil
}

// MountsOf implements Mounts.
func (h *host) MountsOf(context.Context, string) ([]string, error) { return h.mounts, nil }

// DeviceNumber implements Devices.
func (h *host) DeviceNumber(context.Context, string) (major, minor uint32, err error) {
	return 253, 3, nil
}

// killableJournal is the ledger with a step before and after each write.
type killableJournal struct {
	*ledger.Ledger
	k *killer
}

func (j killableJournal) around(f func() error) error {
	if err := j.k.step(); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return j.k.step()
}

func (j killableJournal) Put(e ledger.Entry) error {
	return j.around(func() error { return j.Ledger.Put(e) })
}

func (j killableJournal) Remove(uid string) error {
	return j.around(func() error { return j.Ledger.Remove(uid) })
}

// formatter writes its filesystems into the volumes' files and keeps the rules of
// mount.Formatter.
type formatter struct{ h *host }

func fsContent(fsType, uuid string) []byte { return fmt.Appendf(nil, "FS %s %s", fsType, uuid) }

func (f formatter) Format(ctx context.Context, req mount.FormatRequest) error {
	want, half := fsContent(req.FSType, req.UUID), []byte("FS half made")
	content := head(f.h.t, req.Device)
	switch {
	case !req.NeverFormatted:
		return errors.New("format of a formatted volume")
	case bytes.HasPrefix(content, want):
		return nil
	case blank(content):
	case req.Begun && bytes.HasPrefix(content, half):
	default:
		return volume.ErrNotBlank
	}
	if !req.Begun && req.Begin != nil {
		if err := req.Begin(ctx); err != nil {
			return err
		}
	}
	for _, content := range [][]byte{half, want} {
		if err := f.h.killer.step(); err != nil {
			return err
		}
		overwrite(f.h.t, req.Device, content)
	}
	f.h.mkfs++
	return f.h.killer.step()
}

func head(t *testing.T, device string) []byte {
	t.Helper()
	file, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content := make([]byte, 4096)
	n, _ := file.Read(content)
	return content[:n]
}

func blank(content []byte) bool { return len(bytes.Trim(content, "\x00")) == 0 }

func overwrite(t *testing.T, device string, content []byte) {
	t.Helper()
	file, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteAt(append(content, make([]byte, 64)...), 0)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func localVolume(mutate ...func(*v1alpha1.LocalVolume)) *v1alpha1.LocalVolume {
	lv := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: lvName, UID: lvUID, Generation: 1, Finalizers: []string{v1alpha1.AgentFinalizer}},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: "n1", Mode: v1alpha1.ModeLVM, Pool: "fast", SizeBytes: 8 * mib, VolumeMode: v1alpha1.VolumeFilesystem, FSType: "ext4", Wipe: v1alpha1.WipeZero,
		},
	}
	for _, m := range mutate {
		m(lv)
	}
	return lv
}

func (h *host) get() *v1alpha1.LocalVolume {
	h.t.Helper()
	lv := &v1alpha1.LocalVolume{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Name: lvName}, lv); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		h.t.Fatal(err)
	}
	return lv
}

func (h *host) reconcile() error {
	req := reconcile.Request{NamespacedName: types.NamespacedName{Name: lvName}}
	_, err := h.agent.ReconcileLive(h.t.Context(), req)
	_, deleteErr := h.agent.ReconcileDeleted(h.t.Context(), req)
	return errors.Join(err, deleteErr)
}

// settle reconciles until nothing changes any more.
func (h *host) settle() {
	h.t.Helper()
	for range 10 {
		before := h.writes
		if err := h.reconcile(); err == nil && h.writes == before && !h.worked() {
			return
		}
	}
	h.t.Fatalf("does not settle: %+v, %v", h.get(), h.reconcile())
}

// worked waits for what is done apart from the workers, which on a busy machine takes longer
// than they wait for it, and reports whether there was any.
func (h *host) worked() bool { return h.workedOn(&h.agent.works) }

func (h *host) workedOn(w *works) bool {
	w.mu.Lock()
	running := slices.Collect(maps.Values(w.running))
	w.mu.Unlock()
	for _, job := range running {
		select {
		case <-job.done:
		case <-h.t.Context().Done():
			h.t.Fatalf("%s does not end", job.what)
		}
	}
	return len(running) > 0
}

func (h *host) wantReady() *v1alpha1.LocalVolume {
	h.t.Helper()
	lv := h.get()
	if lv == nil || !isReady(lv) {
		h.t.Fatalf("not ready: %+v", lv)
	}
	if lv.Status.Capacity.Value() < lv.Spec.SizeBytes || lv.Status.MachineID != machine || recordOf(lv) == nil {
		h.t.Fatalf("status %+v", lv.Status)
	}
	if lv.Spec.FSType != "" && (!lv.Status.Formatted || lv.Status.FilesystemUUID != lvUID) {
		h.t.Fatalf("not formatted: %+v", lv.Status)
	}
	found := h.list()
	if len(found) != 1 || found[0].ID != lvUID || !found[0].Record.SameStorage(*recordOf(lv)) {
		h.t.Fatalf("on the disk: %+v, in the status: %+v", found, recordOf(lv))
	}
	return lv
}

func (h *host) wantCondition(status metav1.ConditionStatus, reason string) {
	h.t.Helper()
	lv := h.get()
	c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeReady)
	if c == nil || c.Status != status || c.Reason != reason || c.Message == "" {
		h.t.Fatalf("condition %+v, want %s %s", c, status, reason)
	}
}

func (h *host) wantNothing() {
	h.t.Helper()
	if found := h.list(); len(found) > 0 {
		h.t.Fatalf("left on the disk: %+v", found)
	}
	if entries := h.agent.Ledger.All(); len(entries) > 0 {
		h.t.Fatalf("left in the ledger: %+v", entries)
	}
}

func (h *host) list() []volume.Found {
	h.t.Helper()
	found, err := h.memory.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}

func (h *host) device() string {
	h.t.Helper()
	loc, err := h.memory.Locate(h.t.Context(), lvUID, h.list()[0].Record)
	if err != nil {
		h.t.Fatal(err)
	}
	return loc.Device
}

func (h *host) delete() {
	h.t.Helper()
	if err := h.api.Delete(h.t.Context(), h.get()); err != nil {
		h.t.Fatal(err)
	}
}

// loseLedger is a host whose state directory was lost.
func (h *host) loseLedger() {
	h.t.Helper()
	h.ledgerDir = h.t.TempDir()
	h.start()
}

// rollBack is an etcd restored to before the agent wrote anything.
func (h *host) rollBack() {
	h.t.Helper()
	lv := h.get()
	lv.Status = v1alpha1.LocalVolumeStatus{}
	if err := h.api.Status().Update(h.t.Context(), lv); err != nil {
		h.t.Fatal(err)
	}
	h.start()
}
