// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// VolumeGroups makes and finds volume groups; LVM is the real one.
type VolumeGroups interface {
	FindGroup(ctx context.Context, poolUID string) (*lvm.Group, error)
	CreateGroup(ctx context.Context, spec lvm.GroupSpec) (*lvm.Group, error)
	ExtendGroup(ctx context.Context, groupUUID string, spec lvm.GroupSpec) (*lvm.Group, error)
	RemoveGroup(ctx context.Context, groupUUID, poolUID string, devices []string) error
	// AdoptGroup proves that a group of that name and UUID can become a pool, GroupByUUID
	// finds it again, and LetGroupGo forgets it.
	AdoptGroup(ctx context.Context, name, uuid string) (*lvm.Group, error)
	GroupByUUID(ctx context.Context, uuid string) (*lvm.Group, error)
	// AdoptThinPool is AdoptGroup for a thin pool in the group.
	AdoptThinPool(ctx context.Context, name, uuid string, pool lvm.ThinPoolID) (*lvm.Group, error)
	LetGroupGo(groupUUID string) error
	// Backend returns the backend of a volume group that stands.
	Backend(o lvm.Options) (GroupBackend, error)
}

// GroupBackend is the backend of one volume group; *lvm.Backend is one.
type GroupBackend interface {
	volume.Backend
	Group(ctx context.Context) (*lvm.Group, error)
	// Tend looks after the thin pool; nil where there is none.
	Tend(ctx context.Context) (*lvm.ThinState, error)
	// Mend makes redundant volumes whole again; nil where they are not.
	Mend(ctx context.Context, o lvm.MendOptions) (*lvm.RaidState, error)
	MetadataSource
	// Evacuate empties disks.
	Evacuate(ctx context.Context, o lvm.EvacuateOptions) ([]lvm.Evacuation, error)
}

// LVM is the host's lvm, with a way back from what a loss of power cuts short.
type LVM struct {
	*lvm.Client

	Generations Generations
	// HostRoot is where this process sees the host's "/".
	HostRoot string
	// Instants takes group snapshots.
	Instants lvm.Instants
	Log      *slog.Logger
}

// CreateGroup implements VolumeGroups.
func (l LVM) CreateGroup(ctx context.Context, spec lvm.GroupSpec) (*lvm.Group, error) {
	if err := lvm.RemoveStaleNodes(l.HostRoot, spec.Name); err != nil {
		return nil, err
	}
	return l.Client.CreateGroup(ctx, spec)
}

// Backend implements VolumeGroups.
func (l LVM) Backend(o lvm.Options) (GroupBackend, error) {
	o.Journal = l.Generations
	o.RolledBack = func(devicePath string, seqno uint64) {
		l.Log.Warn("Undid a change of a volume group that a loss of power had cut short; nobody was told that it was made",
			"vg", o.GroupName, "uuid", o.GroupUUID, "disk", devicePath, "generation", seqno)
	}
	o.Instants = l.Instants
	o.Resumed = func(devices int) {
		l.Log.Warn("Resumed volumes that a process that was killed had left suspended", "vg", o.GroupName, "uuid", o.GroupUUID, "devices", devices)
	}
	return lvm.NewBackend(l.Client, o)
}

// RemoveGroup implements VolumeGroups.
func (l LVM) RemoveGroup(ctx context.Context, groupUUID, poolUID string, devices []string) error {
	err := l.Client.RemoveGroup(ctx, groupUUID, poolUID, devices)
	if err != nil || groupUUID == "" {
		return err
	}
	return l.Generations.Forget(groupUUID)
}

// LetGroupGo implements VolumeGroups.
func (l LVM) LetGroupGo(groupUUID string) error { return l.Generations.Forget(groupUUID) }

func groupName(poolSet string) string { return "berth-" + poolSet }

func (r *PoolReconciler) groupBackend(rec *poolRecord, p *livePool) (volume.Backend, error) {
	o := lvm.Options{
		GroupUUID: rec.VGUUID, GroupName: rec.VGName, Devices: p.devices.get, Reserve: p.reserve.bytes, Layout: rec.layout(), Root: r.HostRoot,
		Snapshots: p.snapshots.get,
	}
	if rec.Thin {
		o.Thin, o.ThinPool = p.thin.get, rec.thinPool()
	}
	b, err := r.LVM.Backend(o)
	if err != nil {
		return nil, fmt.Errorf("volume group %s: %w", rec.VGName, err)
	}
	return b, nil
}

// bringUpGroup makes the volume group of a pool or finds it, lets disks join, and
// looks at it. fresh says that nothing was ever begun for it.
func (r *PoolReconciler) bringUpGroup(ctx context.Context, pool *v1alpha1.Pool, set *v1alpha1.PoolSet, rec *poolRecord, fresh bool, p *livePool) (poolView, error) {
	// The disks are claimed under the identity that marks the volume group, which is
	// the Pool's own UID unless the object was made anew.
	claimant := pool.DeepCopy()
	claimant.UID = types.UID(rec.PoolUID)

	var members map[string]device.Claimed
	var notes []string
	if r.Disks.Ready() {
		var err error
		if members, notes, err = r.gather(ctx, claimant, set, rec, pool.Spec.Evacuate); err != nil {
			return unknown(err), err
		}
		p.devices.set(pathsOf(rec, members))
	}
	if rec.VGUUID == "" {
		if !r.Disks.Ready() {
			return pending(v1alpha1.ReasonNoDisks, "the node's disks are being looked at"), nil
		}
		view, made, err := r.makeGroup(ctx, rec, members, fresh, notes)
		if !made {
			return view, err
		}
	}
	if p.backend == nil {
		b, err := r.groupBackend(rec, p)
		if err != nil {
			return failed(v1alpha1.ReasonPoolError, err.Error()), err
		}
		p.backend = b
	}
	b, ok := p.backend.(GroupBackend)
	if !ok {
		return failed(v1alpha1.ReasonPoolError, fmt.Sprintf("pool %s is served by a %T", rec.PoolSet, p.backend)), nil
	}
	rebuild, err := r.rebuildOf(ctx, set, rec, b, p)
	if err != nil {
		return unknown(err), err
	}
	joinErr := r.extendGroup(ctx, rec, members, rebuild)
	if joinErr != nil {
		notes = append(notes, joinErr.Error())
	} else {
		p.devices.set(pathsOf(rec, members))
	}
	emptied, emptyErr := r.evacuate(ctx, pool, rec, b, members)
	notes, joinErr = append(notes, emptied.notes...), errors.Join(joinErr, emptyErr)
	view, err := r.lookAtGroup(ctx, rec, b, rebuild)
	view.evacuations = emptied.status
	if emptied.again > 0 && (view.again == 0 || emptied.again < view.again) {
		view.again = emptied.again
	}
	notes = append(notes, failingOf(rec, r.Disks.Failing())...)
	if err == nil && view.ready == metav1.ConditionTrue && len(notes) > 0 {
		view.message += "; " + strings.Join(notes, "; ")
	}
	return view, errors.Join(err, joinErr)
}

// failingOf says which of the pool's disks are failing. Its volumes go on: what to do is
// the operator's decision.
func failingOf(rec *poolRecord, failing []discovery.FailingDisk) (notes []string) {
	for _, d := range failing {
		if slices.Contains(rec.Disks, d.Name) {
			notes = append(notes, fmt.Sprintf("BlockDevice %s (/dev/%s) is failing: %s", d.Name, d.KernelName, d.Message))
		}
	}
	return notes
}

func unknown(err error) poolView {
	return poolView{ready: metav1.ConditionUnknown, reason: v1alpha1.ReasonPoolError, message: err.Error()}
}

// gather returns the pool's disks by name, after claiming those that may join, but for
// those that are named. notes are disks that could not.
func (r *PoolReconciler) gather(ctx context.Context, claimant *v1alpha1.Pool, set *v1alpha1.PoolSet, rec *poolRecord, not []string) (map[string]device.Claimed, []string, error) {
	claims, err := r.Disks.Claims(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list the pool's disks: %w", err)
	}
	members := membersOf(rec, claims)
	if !grows(set, rec) {
		return members, nil, nil
	}
	candidates, err := r.Disks.PoolCandidates(ctx, set.Spec.DeviceSelector)
	if errors.Is(err, volume.ErrInvalid) {
		return members, []string{err.Error()}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list the usable disks: %w", err)
	}
	candidates = slices.DeleteFunc(candidates, func(d v1alpha1.BlockDevice) bool { return slices.Contains(not, d.Name) })
	if needed := rec.layout().MinDevices(); rec.VGUUID == "" && len(members)+len(candidates) < needed {
		// Disks that no group can be made of are left to others.
		return members, []string{fmt.Sprintf("layout %s needs %d disks on a node, here are %d", rec.layout(), needed, len(members)+len(candidates))}, nil
	}
	var notes []string
	for i := range candidates {
		name := candidates[i].Name
		c, err := r.Disks.ClaimForPool(ctx, name, claimant)
		switch {
		case errors.Is(err, volume.ErrBusy), errors.Is(err, volume.ErrInvalid), errors.Is(err, volume.ErrNotBlank),
			errors.Is(err, volume.ErrInUse), errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrIdentity):
			notes = append(notes, fmt.Sprintf("disk %s did not join: %v", name, err))
		case err != nil:
			return nil, nil, fmt.Errorf("claim disk %s: %w", name, err)
		default:
			r.Log.Info("Claimed a disk for a pool", "pool", rec.PoolSet, "disk", name, "path", c.Path)
			members[c.Name] = c
		}
	}
	return members, notes, nil
}

// membersOf are the disks that are claimed for a pool, by name.
func membersOf(rec *poolRecord, claims []device.Claimed) map[string]device.Claimed {
	members := map[string]device.Claimed{}
	for _, c := range claims {
		if c.Owner.UID == rec.PoolUID {
			members[c.Name] = c
		}
	}
	return members
}

// grows reports whether disks may join the pool. With Manual growth, the selector
// decides when the pool is made, and only the names in it afterwards.
func grows(set *v1alpha1.PoolSet, rec *poolRecord) bool {
	if set == nil || set.Spec.DeviceSelector == nil {
		return false
	}
	return rec.VGUUID == "" || set.Spec.Growth != v1alpha1.GrowthManual || len(set.Spec.DeviceSelector.Names) > 0
}

// makeGroup makes the volume group of the disks, or finds the one that was made
// before a crash.
func (r *PoolReconciler) makeGroup(ctx context.Context, rec *poolRecord, members map[string]device.Claimed, fresh bool, notes []string) (view poolView, made bool, err error) {
	var g *lvm.Group
	if !fresh {
		g, err = r.LVM.FindGroup(ctx, rec.PoolUID)
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return groupFailure(err)
		}
	}
	joined := false
	if g == nil {
		names, paths := present(members)
		if len(paths) < rec.layout().MinDevices() {
			message := "no usable disk of this node matches spec.deviceSelector (kubectl get blockdevices -o wide)"
			if rec.layout().MinDevices() > 1 {
				message = "too few usable disks of this node match spec.deviceSelector (kubectl get blockdevices -o wide)"
			}
			return pending(v1alpha1.ReasonNoDisks, strings.Join(append([]string{message}, notes...), "; ")), false, nil
		}
		g, err = r.LVM.CreateGroup(ctx, lvm.GroupSpec{Name: rec.VGName, PoolUID: rec.PoolUID, PoolSet: rec.PoolSet, Devices: paths})
		if err != nil {
			return groupFailure(err)
		}
		r.Log.Info("Made a volume group", "pool", rec.PoolSet, "vg", g.Name, "uuid", g.UUID, "disks", names)
		rec.Disks, joined = names, true
	}
	rec.VGName, rec.VGUUID = g.Name, g.UUID
	if err := r.records.save(rec); err != nil {
		rec.VGUUID = ""
		if joined {
			rec.Disks = nil
		}
		return unknown(err), false, err
	}
	return poolView{}, true, nil
}

func groupFailure(err error) (poolView, bool, error) {
	switch {
	case errors.Is(err, volume.ErrExists):
		return failed(v1alpha1.ReasonForeignVG, err.Error()), false, nil
	case errors.Is(err, volume.ErrToolMissing), errors.Is(err, volume.ErrNotBlank), errors.Is(err, volume.ErrIdentity):
		return failed(v1alpha1.ReasonPoolError, err.Error()), false, nil
	}
	return unknown(err), false, err
}

// extendGroup lets those disks join that are claimed and not yet part of the group:
// new ones, and those whose joining a crash has cut short.
func (r *PoolReconciler) extendGroup(ctx context.Context, rec *poolRecord, members map[string]device.Claimed, rebuild rebuild) error {
	if rebuild.waits {
		// A group that is changed while a disk is away does not know that disk any more when
		// it comes back.
		return nil
	}

	names, paths := present(joining(rec, members))
	if len(paths) == 0 {
		return nil
	}
	if _, err := r.LVM.ExtendGroup(ctx, rec.VGUUID, lvm.GroupSpec{
		Name: rec.VGName, PoolUID: rec.PoolUID, PoolSet: rec.PoolSet, Devices: paths, Partial: rebuild.due,
	}); err != nil {
		return fmt.Errorf("add the disks %s: %w", strings.Join(names, ", "), err)
	}
	r.Log.Info("Disks joined a volume group", "pool", rec.PoolSet, "vg", rec.VGName, "disks", names)
	before := rec.Disks
	rec.Disks = append(slices.Clone(before), names...)
	slices.Sort(rec.Disks)
	if err := r.records.save(rec); err != nil {
		rec.Disks = before
		return err
	}
	return nil
}

// joining are the disks that are claimed and, as far as is recorded, not yet part of the group.
func joining(rec *poolRecord, members map[string]device.Claimed) map[string]device.Claimed {
	disks := map[string]device.Claimed{}
	for name, c := range members {
		if !slices.Contains(rec.Disks, name) && !slices.Contains(rec.Evacuating, name) {
			disks[name] = c
		}
	}
	return disks
}

// present returns the disks that the kernel shows, sorted by name.
func present(members map[string]device.Claimed) (names, paths []string) {
	for name, c := range members {
		if c.Path != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		paths = append(paths, members[name].Path)
	}
	return names, paths
}

// pathsOf returns the paths of the group's disks for commands to be limited to; nil,
// which means all that lvm may see, when a disk of the group is not among the claims:
// leaving it out would make the group look damaged. It is empty, and not nil, when none of
// them is there.
//
// Disks that are about to join are among them: from the moment that lvm has let one join to that
// where this is recorded, a group without it would look damaged, and have no room for anybody.
func pathsOf(rec *poolRecord, members map[string]device.Claimed) []string {
	if len(rec.Disks) == 0 {
		return nil
	}
	paths := []string{}
	for _, name := range rec.Disks {
		c, ok := members[name]
		if !ok {
			return nil
		}
		if c.Path != "" {
			paths = append(paths, c.Path)
		}
	}
	if len(paths) > 0 {
		_, coming := present(joining(rec, members))
		paths = append(paths, coming...)
	}
	return paths
}

// lookAtGroup says how the volume group looks. Nothing is ever repaired by force; volumes
// that are redundant are made whole again.
func (r *PoolReconciler) lookAtGroup(ctx context.Context, rec *poolRecord, b GroupBackend, rebuild rebuild) (poolView, error) {
	g, err := b.Group(ctx)
	if errors.Is(err, volume.ErrPoolUnavailable) || errors.Is(err, volume.ErrNotFound) {
		r.judged(rec, "all missing", false)
		return failed(v1alpha1.ReasonVGMissing, err.Error()), nil
	}
	if err != nil {
		return unknown(err), err
	}
	if r.Metadata != nil && (g.State() == lvm.StateReady || g.State() == lvm.StatePartial) {
		// Behind what is done now, so that a thin pool is active when it is dumped.
		defer r.Metadata.Seen(rec.PoolSet, r.objectName(rec.PoolSet), b, g.UUID, g.Seqno, rec.Thin && rec.thinPool() == nil)
	}
	if state := g.State(); rec.layout().Redundant() && (state == lvm.StateReady || state == lvm.StatePartial) {
		return r.lookAtRaid(ctx, rec, b, rebuild)
	}
	if !rec.Thin || g.State() != lvm.StateReady {
		r.judged(rec, fmt.Sprintf("%d missing", g.MissingPVs), false)
	}
	view, err := r.lookAtState(ctx, rec, b, g)
	view.disks, view.missingDisks = len(g.PVs), g.MissingPVs
	return view, err
}

func (r *PoolReconciler) lookAtState(ctx context.Context, rec *poolRecord, b GroupBackend, g *lvm.Group) (poolView, error) {
	switch state := g.State(); state {
	case lvm.StateReady:
		if rec.Thin {
			return r.lookAtThinPool(ctx, rec, b)
		}
		return measure(ctx, b, healthy(), v1alpha1.ReasonPoolError)
	case lvm.StatePartial:
		view := failed(v1alpha1.ReasonVGPartial, fmt.Sprintf(
			"%d disks of volume group %s are missing; volumes that do not need them go on, new ones are not made until the disks are back", g.MissingPVs, g.Name))
		view.state = v1alpha1.PoolDegraded
		return view, nil
	default:
		return failed(v1alpha1.ReasonPoolError, fmt.Sprintf("volume group %s (%s) is %s: see docs/limitations.md; nothing is changed", g.Name, g.UUID, state)), nil
	}
}
