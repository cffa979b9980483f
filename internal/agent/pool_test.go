// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// poolHost is a node with disks, an lvm, directories and an API server: what outlives
// the agent's process.
type poolHost struct {
	// stuck keeps disks from being emptied, with that message; onDisk is what is on them.
	stuck     string
	onDisk    int64
	t         *testing.T
	killer    *killer
	api       client.WithWatch
	stateDir  string
	ledgerDir string
	machineID string
	writes    int
	serial    int

	news    newspaper
	disks   map[string]*fakeDisk
	groups  map[string]*fakeGroup
	thin    *lvm.ThinState
	thinErr error
	raid    lvm.RaidState
	creates int
	roots   map[string]string // marker by path; missing when the root is not mounted
	limits  error             // why roots do not keep volumes to their sizes
	// noCopies is why roots do not copy volumes.
	noCopies error
	// instant: they have subvolumes.
	instant bool
	// retained is what roots keep of deleted volumes, retainedErr why that is not known.
	retained    []hostpath.Retained
	retainedErr error
	inits       int
	memories    map[string]*volumetest.Memory

	pools    *PoolReconciler
	backends *Backends
	stop     context.CancelFunc
}

type fakeDisk struct {
	owner    string
	released bool
	missing  bool
	failing  string // why
}

type fakeGroup struct {
	name, poolUID string
	devices       []string
	missing       int
	// closed devices are being emptied, or were.
	closed map[string]bool
	// thinPool is one of somebody else in it, if there is one.
	thinPool lvm.ThinPoolID
}

func newPoolHost(t *testing.T, disks ...string) *poolHost {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"disk": "ssd"}}}
	h := &poolHost{
		t: t, killer: &killer{left: -1}, stateDir: t.TempDir(), ledgerDir: t.TempDir(), machineID: machine,
		disks: map[string]*fakeDisk{}, groups: map[string]*fakeGroup{}, roots: map[string]string{}, memories: map[string]*volumetest.Memory{},
		api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(node).WithStatusSubresource(&v1alpha1.Pool{}).Build(),
	}
	for _, d := range disks {
		h.disks[d] = &fakeDisk{}
	}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *poolHost) start() {
	h.t.Helper()
	h.killer.arm(-1)
	if h.stop != nil {
		h.stop()
	}
	book, err := ledger.Open(h.ledgerDir)
	if err != nil {
		h.t.Fatal(err)
	}
	write := func(f func() error) error {
		if err := h.killer.step(); err != nil {
			return err
		}
		h.writes++
		if err := f(); err != nil {
			return err
		}
		return h.killer.step()
	}
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	h.backends = NewBackends(nil)
	h.pools = NewPoolReconciler(ctx, PoolOptions{
		Client: interceptor.NewClient(h.api, interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				return write(func() error {
					h.serial++
					o.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-9000-%012d", h.serial)))
					return c.Create(ctx, o, opts...)
				})
			},
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				return write(func() error { return c.Patch(ctx, o, p, opts...) })
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				return write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
			},
		}),
		Live: h.api, NodeName: "n1", MachineID: h.machineID, Directory: h.stateDir, Backends: h.backends, Ledger: book,
		Disks: h, LVM: fakeLVM{h}, Roots: fakeRoots{h}, Events: fakeEvents{}, Recorder: &h.news, Log: slog.New(slog.DiscardHandler),
	})
	if err := h.pools.Restore(); err != nil {
		h.t.Fatal(err)
	}
}

// The disks.

func diskPath(name string) string { return "/dev/" + name }

func (h *poolHost) Ready() bool { return true }

func (h *poolHost) PoolCandidates(_ context.Context, sel *v1alpha1.DeviceSelector) ([]v1alpha1.BlockDevice, error) {
	var found []v1alpha1.BlockDevice
	for name, d := range h.disks {
		if d.owner == "" && !d.released && !d.missing && (len(sel.Names) == 0 || slices.Contains(sel.Names, name)) {
			found = append(found, v1alpha1.BlockDevice{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	slices.SortFunc(found, func(a, b v1alpha1.BlockDevice) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

func (h *poolHost) ClaimForPool(_ context.Context, name string, pool *v1alpha1.Pool) (device.Claimed, error) {
	d := h.disks[name]
	if d.owner != "" && d.owner != string(pool.UID) || d.released {
		return device.Claimed{}, volume.ErrBusy
	}
	for _, g := range h.groups {
		if slices.Contains(g.devices, diskPath(name)) {
			return device.Claimed{}, volume.ErrNotBlank
		}
	}
	if err := h.killer.step(); err != nil {
		return device.Claimed{}, err
	}
	d.owner = string(pool.UID)
	return h.claimed(name), h.killer.step()
}

func (h *poolHost) claimed(name string) device.Claimed {
	d := h.disks[name]
	c := device.Claimed{Name: name, Path: diskPath(name), State: device.StateClaimed, Owner: device.Owner{UID: d.owner, Kind: device.OwnerPool}}
	if d.missing {
		c.Path = ""
	}
	return c
}

func (h *poolHost) Failing() (failing []discovery.FailingDisk) {
	for name, d := range h.disks {
		if d.failing != "" {
			failing = append(failing, discovery.FailingDisk{Name: name, KernelName: "vd" + name, Held: d.owner != "", Message: d.failing})
		}
	}
	return failing
}

func (h *poolHost) Claims(context.Context) ([]device.Claimed, error) {
	var claims []device.Claimed
	for name, d := range h.disks {
		if d.owner != "" && !d.released {
			claims = append(claims, h.claimed(name))
		}
	}
	return claims, nil
}

func (h *poolHost) Release(_ context.Context, name, owner string, policy volume.WipePolicy) (string, error) {
	d := h.disks[name]
	if d.owner != owner {
		return "", volume.ErrNotFound
	}
	for _, g := range h.groups {
		if slices.Contains(g.devices, diskPath(name)) {
			h.t.Errorf("disk %s was released while it is part of %s", name, g.name)
		}
	}
	if (policy == volume.WipeNone) != d.missing {
		h.t.Errorf("disk %s was released with wipe %s; missing: %v", name, policy, d.missing)
	}
	if err := h.killer.step(); err != nil {
		return "", err
	}
	d.released = true
	return "token", h.killer.step()
}

// Words of the tests.

func poolSet(mutate ...func(*v1alpha1.PoolSet)) *v1alpha1.PoolSet {
	s := &v1alpha1.PoolSet{
		ObjectMeta: metav1.ObjectMeta{Name: "fast"},
		Spec: v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Growth: v1alpha1.GrowthAuto,
			NodeSelector: map[string]string{"disk": "ssd"},
		},
	}
	for _, m := range mutate {
		m(s)
	}
	return s
}

func hostpathSet(s *v1alpha1.PoolSet) {
	s.Spec.Kind, s.Spec.DeviceSelector, s.Spec.Growth = v1alpha1.PoolHostpath, nil, ""
	s.Spec.Hostpath = &v1alpha1.HostpathPool{Path: "/srv/berth"}
}

func (h *poolHost) apply(s *v1alpha1.PoolSet) {
	h.t.Helper()
	if err := h.api.Create(h.t.Context(), s); err != nil {
		h.t.Fatal(err)
	}
}

func (h *poolHost) reconcile() error {
	_, err := h.pools.Reconcile(h.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "fast"}})
	return err
}

func (h *poolHost) settle() {
	h.t.Helper()
	for range 10 {
		before := h.writes
		if err := h.reconcile(); err == nil && h.writes == before {
			return
		}
	}
	h.t.Fatalf("does not settle: %+v, %v", h.pool(), h.reconcile())
}

func (h *poolHost) pool() *v1alpha1.Pool {
	h.t.Helper()
	p := &v1alpha1.Pool{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Name: "fast-n1"}, p); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		h.t.Fatal(err)
	}
	return p
}

func (h *poolHost) want(state v1alpha1.PoolState, reason string) *v1alpha1.Pool {
	h.t.Helper()
	p := h.pool()
	if p == nil {
		h.t.Fatal("no Pool")
	}
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PoolReady)
	if p.Status.State != state || c == nil || c.Reason != reason || c.Message == "" {
		h.t.Fatalf("state %s, condition %+v; want %s %s", p.Status.State, c, state, reason)
	}
	return p
}

func (h *poolHost) wantHealthy(disks ...string) *v1alpha1.Pool {
	h.t.Helper()
	p := h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	if len(h.groups) != 1 || h.groups[p.Status.VGUUID] == nil {
		h.t.Fatalf("volume groups %v, status %s", h.groups, p.Status.VGUUID)
	}
	var paths []string
	for _, d := range disks {
		paths = append(paths, diskPath(d))
	}
	devices := slices.Sorted(slices.Values(h.groups[p.Status.VGUUID].devices))
	if !slices.Equal(devices, paths) || !slices.Equal(p.Status.BlockDevices, disks) {
		h.t.Fatalf("devices %v, in the status %v, want %v", devices, p.Status.BlockDevices, disks)
	}
	if p.Status.Capacity == nil || p.Status.Capacity.Value() != int64(len(disks))*100*mib || p.Status.Free == nil {
		h.t.Fatalf("numbers %+v", p.Status)
	}
	if _, err := h.backends.ForNew(volume.ModeLVM, "fast"); err != nil {
		h.t.Fatalf("not usable: %v", err)
	}
	return p
}

func (h *poolHost) deletePool() {
	h.t.Helper()
	if err := h.api.Delete(h.t.Context(), h.pool()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *poolHost) deleteSet() {
	h.t.Helper()
	if err := h.api.Delete(h.t.Context(), poolSet()); err != nil {
		h.t.Fatal(err)
	}
}
