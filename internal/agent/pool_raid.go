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
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// defaultRebuildAfter is long enough for a node to find its disks after a boot, and for
	// somebody to put a cable back.
	defaultRebuildAfter = 5 * time.Minute
	// rebuildInterval is how often the progress of a rebuild is shown.
	rebuildInterval = 10 * time.Second
)

// rebuild is what a redundant group may do about disks that are missing.
type rebuild struct {
	// waits for the disks, until they have been missing for after; left of it are left.
	waits       bool
	after, left time.Duration
	// due: they are given up.
	due bool
}

// rebuildOf decides by how long disks have been missing, as far as this process knows.
func (r *PoolReconciler) rebuildOf(ctx context.Context, set *v1alpha1.PoolSet, rec *poolRecord, b GroupBackend, p *livePool) (rebuild, error) {
	if !rec.layout().Redundant() {
		return rebuild{}, nil
	}
	g, err := b.Group(ctx)
	if errors.Is(err, volume.ErrPoolUnavailable) || errors.Is(err, volume.ErrNotFound) {
		return rebuild{}, nil // said by the look that follows
	}
	if err != nil {
		return rebuild{}, err
	}
	if g.MissingPVs == 0 {
		p.missingSince = time.Time{}
		return rebuild{}, nil
	}
	if p.missingSince.IsZero() {
		p.missingSince = time.Now()
	}
	d := rebuild{after: defaultRebuildAfter}
	if set != nil && set.Spec.RebuildAfter != nil {
		d.after = set.Spec.RebuildAfter.Duration
	}
	d.left = d.after - time.Since(p.missingSince)
	d.due = d.left <= 0
	d.waits = !d.due
	return d, nil
}

// lookAtRaid makes the volumes whole again as far as it can, and says how they are.
func (r *PoolReconciler) lookAtRaid(ctx context.Context, rec *poolRecord, b GroupBackend, d rebuild) (poolView, error) {
	r.follow(rec)
	state, err := b.Mend(ctx, lvm.MendOptions{Replace: d.due})
	switch {
	case errors.Is(err, volume.ErrPoolUnavailable), errors.Is(err, volume.ErrToolMissing), errors.Is(err, volume.ErrIdentity):
		return failed(v1alpha1.ReasonPoolError, err.Error()), nil
	case err != nil:
		return unknown(err), err
	case state == nil:
		return failed(v1alpha1.ReasonPoolError, "the volume group's volumes are not redundant"), nil
	}
	if state.Repaired+state.Refreshed+state.DroppedDevices > 0 {
		r.Log.Info("Mended a redundant pool", "pool", rec.PoolSet,
			"repairedVolumes", state.Repaired, "refreshedVolumes", state.Refreshed, "droppedDisks", state.DroppedDevices)
	}
	g, err := b.Group(ctx)
	if err != nil {
		return unknown(err), err
	}
	r.judged(rec, raidWords(g, state), state.RebuildingVolumes > 0)
	var view poolView
	if g.MissingPVs == 0 {
		if err := r.letGo(ctx, rec, g); err != nil {
			return unknown(err), err
		}
		if rec.Thin {
			view, err = r.lookAtThinPool(ctx, rec, b)
		} else {
			view, err = measure(ctx, b, healthy(), v1alpha1.ReasonPoolError)
		}
	} else {
		view = lacking(g, d, state)
	}
	view.disks, view.missingDisks = len(g.PVs), g.MissingPVs
	if err != nil {
		return view, err
	}
	judgeRaid(&view, state, rec.Thin)
	return view, nil
}

// lacking says that disks are missing, and what happens about it.
func lacking(g *lvm.Group, d rebuild, state *lvm.RaidState) poolView {
	view := failed(v1alpha1.ReasonVGPartial, fmt.Sprintf(
		"%d of %d disks of volume group %s are missing; its volumes go on without them, and none is made, grown or deleted", g.MissingPVs, len(g.PVs), g.Name))
	view.state = v1alpha1.PoolDegraded
	switch {
	case state.OldVolumes > 0:
		view.state = v1alpha1.PoolFailed
		view.message = fmt.Sprintf("%d of %d disks of volume group %s are missing, and %d of %d volumes cannot be used without them: %s",
			g.MissingPVs, len(g.PVs), g.Name, state.OldVolumes, state.Volumes, state.Old)
	case d.waits:
		view.message += fmt.Sprintf(" until they are back, or have been missing for %s and what was on them is built anew on others", d.after)
		view.again = max(d.left, time.Second)
	case state.Old != "":
		view.message += ", nor built anew on others: " + state.Old
	case state.Waiting != "":
		view.message += ": " + state.Waiting + "; add a disk that matches spec.deviceSelector"
	default:
		view.message += " until what else is on them is gone: see lvs -a -o name,devices"
	}
	return view
}

// judgeRaid says how redundant the volumes are, or the thin pool that they lie in.
func judgeRaid(view *poolView, state *lvm.RaidState, thin bool) {
	count := func(n int) int32 { return int32(min(n, 1<<31-1)) }
	view.raid = &v1alpha1.RaidStatus{
		DegradedVolumes: count(state.DegradedVolumes), RebuildingVolumes: count(state.RebuildingVolumes), RebuiltPercent: count(state.RebuiltPercent),
	}
	if state.RebuildingVolumes > 0 {
		view.again = rebuildInterval
	}
	if state.DegradedVolumes == 0 || view.ready != metav1.ConditionTrue {
		return
	}
	view.state, view.reason = v1alpha1.PoolDegraded, v1alpha1.ReasonNotRedundant
	what, until, failed := fmt.Sprintf("%d of %d volumes are not redundant", state.DegradedVolumes, state.Volumes), "they are", fmt.Sprintf("%d of them", state.FailedVolumes)
	if thin {
		what, until, failed = "the thin pool, and with it all its volumes, is not redundant", "it is", "it"
	}
	view.message += "; " + what
	if state.RebuildingVolumes > 0 {
		view.message += fmt.Sprintf(" until %s rebuilt (status.raid)", until)
	}
	if state.FailedVolumes > 0 {
		view.message += fmt.Sprintf(": a disk of %s has failed and is still there; see the node's kernel log, and unplug it to have it replaced", failed)
	}
	if state.Waiting != "" {
		view.message += ": " + state.Waiting
	}
}

// letGo gives up the claims of disks that are not part of the group any more. What is on
// them stays as it is: they were lost, and may come back with what was on them then.
func (r *PoolReconciler) letGo(ctx context.Context, rec *poolRecord, g *lvm.Group) error {
	if g.State() != lvm.StateReady || len(rec.Disks) <= len(g.PVs) || !r.Disks.Ready() {
		return nil
	}
	claims, err := r.Disks.Claims(ctx)
	if err != nil {
		return fmt.Errorf("list the pool's disks: %w", err)
	}
	var kept []string
	var lost []device.Claimed
	for _, name := range rec.Disks {
		i := slices.IndexFunc(claims, func(c device.Claimed) bool { return c.Name == name && c.Owner.UID == rec.PoolUID })
		switch {
		case i < 0: // it was given up before
		case claims[i].Path != "" && groupHas(g, claims[i].Path):
			kept = append(kept, name)
		default:
			lost = append(lost, claims[i])
		}
	}
	if len(kept) != len(g.PVs) {
		return fmt.Errorf("volume group %s has %d devices, and %d claimed disks are among them: %w", g.Name, len(g.PVs), len(kept), volume.ErrBusy)
	}
	for _, c := range lost {
		if _, err := r.Disks.Release(ctx, c.Name, rec.PoolUID, volume.WipeNone); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return fmt.Errorf("give up disk %s: %w", c.Name, err)
		}
		r.Log.Info("A lost disk is not part of its pool any more", "pool", rec.PoolSet, "disk", c.Name)
	}
	disks, evacuating := rec.Disks, rec.Evacuating
	rec.Disks = kept
	// One that was lost while it was emptied is left as it is, too.
	rec.Evacuating = slices.DeleteFunc(slices.Clone(evacuating), func(name string) bool {
		return slices.Contains(disks, name) && !slices.Contains(kept, name)
	})
	if err := r.records.save(rec); err != nil {
		rec.Disks, rec.Evacuating = disks, evacuating
		return err
	}
	return nil
}

func groupHas(g *lvm.Group, path string) bool {
	return slices.ContainsFunc(g.PVs, func(pv lvm.PhysicalVolume) bool { return pv.Path == path })
}
