// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// adopts notes that the pool is a volume group of somebody else's.
func (r *poolRecord) adopts(pool *v1alpha1.Pool, set *v1alpha1.PoolSet) {
	switch {
	case pool.Status.Adopted && r.VGUUID != "":
		r.Adoption = adoptionSeen // the record was lost
		r.ThinPoolName, r.ThinPoolUUID = pool.Status.ThinPoolName, pool.Status.ThinPoolUUID
	case set != nil && set.Spec.Adopt != nil && r.VGUUID == "":
		r.Adoption, r.VGName, r.VGUUID = adoptionAsked, set.Spec.Adopt.VGName, set.Spec.Adopt.VGUUID
		r.ThinPoolName, r.ThinPoolUUID = set.Spec.Adopt.ThinPoolName, set.Spec.Adopt.ThinPoolUUID
	}
}

// follows reports whether the pool is what a PoolSet's spec.adopt says.
func (r *poolRecord) follows(adopt *v1alpha1.AdoptedGroup) bool {
	if adopt == nil || r.Adoption == "" {
		return adopt == nil && r.Adoption == ""
	}
	return r.VGUUID == adopt.VGUUID && r.ThinPoolName == adopt.ThinPoolName && r.ThinPoolUUID == adopt.ThinPoolUUID
}

// thinPool is the thin pool that was adopted; nil for all others.
func (r *poolRecord) thinPool() *lvm.ThinPoolID {
	if r.ThinPoolUUID == "" {
		return nil
	}
	return &lvm.ThinPoolID{Name: r.ThinPoolName, UUID: r.ThinPoolUUID}
}

// adoptable proves that the record's group, and the thin pool in it, can become a pool.
func (r *PoolReconciler) adoptable(ctx context.Context, rec *poolRecord) (*lvm.Group, error) {
	if pool := rec.thinPool(); pool != nil {
		return r.LVM.AdoptThinPool(ctx, rec.VGName, rec.VGUUID, *pool)
	}
	return r.LVM.AdoptGroup(ctx, rec.VGName, rec.VGUUID)
}

// thinPoolReason is the reason of a thin pool that was adopted and cannot be used.
func thinPoolReason(err error) string {
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrIdentity) {
		return v1alpha1.ReasonThinPoolMissing
	}
	return v1alpha1.ReasonPoolError
}

// stands reports whether volumes may be in the pool's volume group.
func (r *poolRecord) stands() bool {
	return r.VGUUID != "" && (r.Adoption == "" || r.Adoption == adoptionDone)
}

// bringUpAdopted looks at a volume group of somebody else's, after proving that it is the
// one that is meant.
func (r *PoolReconciler) bringUpAdopted(ctx context.Context, pool *v1alpha1.Pool, rec *poolRecord, p *livePool) (poolView, error) {
	if rec.Adoption != adoptionDone {
		view, err := r.adoptGroup(ctx, pool, rec, p)
		if rec.Adoption != adoptionDone || err != nil {
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
	// Its disks are not claimed, so that nobody tells under which names they are now.
	if p.devices.get() == nil {
		if err := r.findDevices(ctx, rec, p); err != nil {
			return unknown(err), err
		}
	}
	view, err := r.lookAtGroup(ctx, rec, b, rebuild{})
	for _, name := range pool.Spec.Evacuate {
		view.evacuations = append(view.evacuations, v1alpha1.DiskEvacuation{Name: name, Message: "no disk is taken out of a volume group that was adopted"})
	}
	if err == nil && (view.reason == v1alpha1.ReasonVGMissing || view.reason == v1alpha1.ReasonVGPartial) {
		before := p.devices.get()
		if err := r.findDevices(ctx, rec, p); err != nil {
			return unknown(err), err
		}
		if !slices.Equal(before, p.devices.get()) {
			return r.lookAtGroup(ctx, rec, b, rebuild{})
		}
	}
	return view, err
}

// findDevices notes where the disks of the group are, for commands to be limited to them.
// Where that is not known, or doubtful, lvm sees what the host lets it see.
func (r *PoolReconciler) findDevices(ctx context.Context, rec *poolRecord, p *livePool) error {
	g, err := r.LVM.GroupByUUID(ctx, rec.VGUUID)
	switch {
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrIdentity):
		p.devices.set(nil)
		return nil
	case err != nil:
		return err
	}
	p.devices.set(g.Paths())
	return nil
}

// adoptGroup goes one step: it looks whether the group can be had, and says so in the Pool;
// when that stands, it asks the other nodes. Two that see one disk would both say so, and
// neither goes on.
func (r *PoolReconciler) adoptGroup(ctx context.Context, pool *v1alpha1.Pool, rec *poolRecord, p *livePool) (poolView, error) {
	g, err := r.adoptable(ctx, rec)
	if err == nil {
		err = r.soleAdopter(ctx, rec)
	}
	switch {
	case errors.Is(err, volume.ErrPoolUnavailable) && thinPoolReason(err) == v1alpha1.ReasonThinPoolMissing:
		return pending(v1alpha1.ReasonThinPoolMissing, "spec.adopt: "+err.Error()), nil
	case errors.Is(err, volume.ErrNotFound):
		return pending(v1alpha1.ReasonVGMissing, "spec.adopt: "+err.Error()), nil
	case errors.Is(err, volume.ErrIdentity), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrPoolUnavailable):
		return failed(v1alpha1.ReasonForeignVG, "spec.adopt: "+err.Error()), nil
	case errors.Is(err, volume.ErrToolMissing):
		return failed(v1alpha1.ReasonPoolError, err.Error()), nil
	case err != nil:
		return unknown(err), err
	}
	next := adoptionSeen
	if rec.Adoption == adoptionSeen && pool.Status.Adopted && pool.Status.VGUUID == rec.VGUUID {
		next = adoptionDone
	}
	if err := r.adopted(rec, next); err != nil {
		return unknown(err), err
	}
	if next == adoptionDone {
		p.devices.set(g.Paths())
		r.Log.Info("Adopted a volume group", "pool", rec.PoolSet, "vg", g.Name, "uuid", g.UUID, "thinPool", rec.ThinPoolName, "disks", g.Paths())
		return poolView{}, nil
	}
	view := pending(v1alpha1.ReasonPoolReady, fmt.Sprintf("volume group %s is being adopted", g.Name))
	view.ready, view.again = metav1.ConditionUnknown, time.Millisecond
	return view, nil
}

func (r *PoolReconciler) adopted(rec *poolRecord, next adoption) error {
	before := rec.Adoption
	rec.Adoption = next
	if err := r.records.save(rec); err != nil {
		rec.Adoption = before
		return err
	}
	return nil
}

// soleAdopter returns volume.ErrExists when another pool has the volume group, on this node
// or on one that sees the same disks.
func (r *PoolReconciler) soleAdopter(ctx context.Context, rec *poolRecord) error {
	var pools v1alpha1.PoolList
	if err := r.Live.List(ctx, &pools); err != nil {
		return fmt.Errorf("list the Pools of all nodes: %w", err)
	}
	for i := range pools.Items {
		other := &pools.Items[i]
		if other.Status.VGUUID == rec.VGUUID && other.Name != r.objectName(rec.PoolSet) {
			return fmt.Errorf("volume group %s: %w: Pool %s of node %s has it", rec.VGName, volume.ErrExists, other.Name, other.Spec.NodeName)
		}
	}
	return nil
}

// letGroupGo ends the adoption of a group in which there is no volume of ours any more. It
// stays as it is.
func (r *PoolReconciler) letGroupGo(rec *poolRecord) error {
	if err := r.LVM.LetGroupGo(rec.VGUUID); err != nil {
		return err
	}
	r.Log.Info("A volume group that was adopted is let go", "pool", rec.PoolSet, "vg", rec.VGName, "uuid", rec.VGUUID, "thinPool", rec.ThinPoolName)
	rec.Removal = removalDone
	return r.records.save(rec)
}
