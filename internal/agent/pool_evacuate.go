// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// evacuateInterval is how often it is shown how far a disk has been emptied.
const evacuateInterval = 10 * time.Second

// evacuation is what a look at a pool has found out about the disks that are to be emptied.
type evacuation struct {
	status []v1alpha1.DiskEvacuation
	notes  []string
	// again is when to look again at the latest; 0 when there is nothing to wait for.
	again time.Duration
}

// evacuate brings the disks of spec.evacuate nearer to being empty, and lets go those that
// are. The record says which disks may have been begun with before anything is done to one.
//
// A disk that is empty is taken out of the volume group first, then out of the record, and
// then its claim ends: cut short anywhere, the next look goes on.
func (r *PoolReconciler) evacuate(ctx context.Context, pool *v1alpha1.Pool, rec *poolRecord, b GroupBackend, members map[string]device.Claimed) (evacuation, error) {
	if len(pool.Spec.Evacuate)+len(rec.Evacuating) == 0 || !r.Disks.Ready() {
		return evacuation{}, nil
	}
	if err := r.letEvacuatedGo(ctx, rec, members); err != nil {
		return evacuation{}, err
	}
	var wanted, back []string
	var strangers []v1alpha1.DiskEvacuation
	for _, name := range pool.Spec.Evacuate {
		if slices.Contains(rec.Disks, name) {
			wanted = append(wanted, name)
		} else {
			strangers = append(strangers, v1alpha1.DiskEvacuation{Name: name, Message: "it is no disk of this pool, and does not become one"})
		}
	}
	for _, name := range rec.Evacuating {
		if !slices.Contains(wanted, name) {
			back = append(back, name)
		}
	}
	if len(wanted)+len(back) == 0 {
		return evacuation{status: strangers}, nil
	}
	r.follow(rec)
	if err := r.saveEvacuating(rec, append(slices.Clone(back), wanted...)); err != nil {
		return evacuation{}, err
	}
	found, err := b.Evacuate(ctx, lvm.EvacuateOptions{Empty: where(wanted, members), Open: where(back, members)})
	if err != nil {
		e := waiting(wanted, err)
		e.status = append(e.status, strangers...)
		if errors.Is(err, volume.ErrPoolUnavailable) || errors.Is(err, volume.ErrIdentity) {
			err = nil // it is said, and to try again soon is of no use
		}
		return e, err
	}
	if rec.layout().Redundant() {
		// What has left such a pool may be a disk that was lost: letGo.
		found = slices.DeleteFunc(found, func(f lvm.Evacuation) bool { return slices.Contains(where(back, members), f.Path) })
	}
	// One that is not there now is opened when it is; one that had left the group, and the
	// record does not say so yet, has left the pool.
	away := slices.DeleteFunc(back, func(name string) bool { path := members[name].Path; return path != "" && !isOut(found, path) })
	if err := r.saveEvacuating(rec, append(away, wanted...)); err != nil {
		return evacuation{}, err
	}
	if err := r.takeEvacuatedOut(rec, found, members); err != nil {
		return evacuation{}, err
	}
	if err := r.letEvacuatedGo(ctx, rec, members); err != nil {
		return evacuation{}, err
	}
	e := progress(found, wanted, members)
	e.status = append(e.status, strangers...)
	return e, nil
}

// where returns the paths of disks; those that are not there have none.
func where(names []string, members map[string]device.Claimed) (paths []string) {
	for _, name := range names {
		if path := members[name].Path; path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

func isOut(found []lvm.Evacuation, path string) bool {
	return path != "" && slices.ContainsFunc(found, func(f lvm.Evacuation) bool { return f.Out && f.Path == path })
}

func waiting(names []string, err error) (e evacuation) {
	for _, name := range names {
		e.status = append(e.status, v1alpha1.DiskEvacuation{Name: name, Message: err.Error()})
	}
	e.again = poolRetry
	return e
}

// progress says how far the disks are that are still part of the pool.
func progress(found []lvm.Evacuation, wanted []string, members map[string]device.Claimed) (e evacuation) {
	for _, name := range wanted {
		i := slices.IndexFunc(found, func(f lvm.Evacuation) bool { return f.Path == members[name].Path })
		if i < 0 {
			e.status = append(e.status, v1alpha1.DiskEvacuation{Name: name, Message: "the disk is not there"})
			continue
		}
		f := found[i]
		if f.Out {
			e.again = time.Millisecond // to look at the pool without it
			continue
		}
		const mebi = 1 << 20
		left := resource.NewQuantity((f.RemainingBytes+mebi-1)&^(mebi-1), resource.BinarySI)
		s := v1alpha1.DiskEvacuation{Name: name, Remaining: left, Message: f.Waiting}
		if f.Moving {
			s.Message = "its content is being moved to other disks of the pool"
		}
		e.status = append(e.status, s)
		if f.Waiting != "" {
			e.notes = append(e.notes, fmt.Sprintf("disk %s cannot be emptied: %s", name, f.Waiting))
			e.again = poolRetry
			continue
		}
		e.notes = append(e.notes, fmt.Sprintf("disk %s is being emptied (status.evacuations)", name))
		e.again = evacuateInterval
	}
	return e
}

func (r *PoolReconciler) saveEvacuating(rec *poolRecord, names []string) error {
	slices.Sort(names)
	names = slices.Compact(names)
	if slices.Equal(names, rec.Evacuating) {
		return nil
	}
	before := rec.Evacuating
	rec.Evacuating = names
	if err := r.records.save(rec); err != nil {
		rec.Evacuating = before
		return err
	}
	return nil
}

// takeEvacuatedOut notes the disks that are not part of the volume group any more.
func (r *PoolReconciler) takeEvacuatedOut(rec *poolRecord, found []lvm.Evacuation, members map[string]device.Claimed) error {
	before := rec.Disks
	rec.Disks = slices.DeleteFunc(slices.Clone(before), func(name string) bool { return isOut(found, members[name].Path) })
	if len(rec.Disks) == len(before) {
		return nil
	}
	if err := r.records.save(rec); err != nil {
		rec.Disks = before
		return err
	}
	r.live(rec.PoolSet).devices.set(pathsOf(rec, members))
	return nil
}

// letEvacuatedGo ends the claims of disks that were emptied and taken out. What was moved is
// still on them to be read, so they are zeroed before anybody else gets them.
func (r *PoolReconciler) letEvacuatedGo(ctx context.Context, rec *poolRecord, members map[string]device.Claimed) error {
	for _, name := range slices.Clone(rec.Evacuating) {
		if slices.Contains(rec.Disks, name) {
			continue
		}
		if _, err := r.Disks.Release(ctx, name, rec.PoolUID, volume.WipeZero); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return fmt.Errorf("release disk %s, which was emptied: %w", name, err)
		}
		delete(members, name)
		if err := r.saveEvacuating(rec, slices.DeleteFunc(slices.Clone(rec.Evacuating), func(n string) bool { return n == name })); err != nil {
			return err
		}
		r.Log.Info("A disk was emptied and is not part of its pool any more", "pool", rec.PoolSet, "disk", name)
	}
	return nil
}
