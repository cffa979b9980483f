// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// lvm makes one snapshot after the other, and changes its metadata for each while the
// volume stands still. So the snapshots of a group are made by lvm first, which reserves
// their names and their numbers in the pool, and are then taken anew by messages to the pool
// while all volumes stand still, which lvm need not know: for it nothing has changed. In
// the end a tag on each says that it is one of those, and when that was. Only when all have
// the same tag has the group been taken; until then it is taken again.

// instantLayout is how the time of an instant stands in TagInstant.
const instantLayout = "20060102T150405.000000000Z"

// SnapshotGroup implements volume.GroupSnapshotter, for volumes of a thin pool. It costs two
// lvm processes.
func (b *Backend) SnapshotGroup(ctx context.Context, spec volume.GroupSnapshotSpec) (volume.GroupSnapshot, error) {
	if err := b.checkGroup(spec); err != nil {
		return volume.GroupSnapshot{}, err
	}
	if b.queue.thin == nil {
		return volume.GroupSnapshot{}, fmt.Errorf("group snapshot %s: %w: only the volumes of a thin pool can be taken at one instant, and those of %s are thick: take a snapshot of each",
			spec.Name, volume.ErrInvalid, b.group.GroupName)
	}
	// What two calls at once would take, neither could tell.
	select {
	case b.grouping <- struct{}{}:
		defer func() { <-b.grouping }()
	case <-ctx.Done():
		return volume.GroupSnapshot{}, fmt.Errorf("group snapshot %s: not started: %w", spec.Name, context.Cause(ctx))
	}
	g, err := b.ready(ctx)
	if err != nil {
		return volume.GroupSnapshot{}, err
	}
	if found, ok := groupTaken(g, spec); ok {
		return found, nil
	}
	if !spec.TakenAt.IsZero() {
		return volume.GroupSnapshot{}, fmt.Errorf("group snapshot %s: %w: it was taken at %s, and volume group %s does not have all of it any more",
			spec.Name, volume.ErrIdentity, spec.TakenAt.UTC().Format(time.RFC3339), g.Name)
	}
	if err := b.makeGroup(ctx, g, spec); err != nil {
		return volume.GroupSnapshot{}, err
	}
	if _, err := b.queue.do(ctx, &operation{verb: verbInstant, group: &spec}); err != nil {
		return volume.GroupSnapshot{}, err
	}
	if err := b.markAll(ctx, spec, time.Now()); err != nil {
		return volume.GroupSnapshot{}, err
	}
	if g, err = b.ready(ctx); err != nil {
		return volume.GroupSnapshot{}, err
	}
	found, ok := groupTaken(g, spec)
	if !ok {
		return volume.GroupSnapshot{}, fmt.Errorf("group snapshot %s: %w: somebody else has changed volume group %s meanwhile", spec.Name, volume.ErrBusy, g.Name)
	}
	return found, nil
}

func (b *Backend) checkGroup(spec volume.GroupSnapshotSpec) error {
	if len(spec.Snapshots) == 0 {
		return fmt.Errorf("group snapshot %s: %w: it is of no volume", spec.Name, volume.ErrInvalid)
	}
	seen := map[string]bool{}
	for _, s := range spec.Snapshots {
		if err := volume.ValidateID(s.ID); err != nil {
			return err
		}
		if err := b.checkRecord(s.VolumeID, s.Volume); err != nil {
			return err
		}
		if seen[s.ID] || seen[s.VolumeID] {
			return fmt.Errorf("group snapshot %s: %w: volume %s is in it twice", spec.Name, volume.ErrInvalid, s.VolumeID)
		}
		seen[s.ID], seen[s.VolumeID] = true, true
	}
	return nil
}

// makeGroup lets lvm make those of the group's snapshots that are not there. When one is
// refused none is left.
func (b *Backend) makeGroup(ctx context.Context, g *Group, spec volume.GroupSnapshotSpec) error {
	for _, s := range spec.Snapshots {
		origin, snapshot := g.volumeByUUID(s.Volume.LVM.LVUUID), g.Volume(snapshotPrefix+s.ID)
		if origin == nil || snapshot == nil || origin.SizeBytes == snapshot.SizeBytes {
			continue
		}
		// The volume has grown since an attempt that was cut short.
		if err := b.DeleteSnapshot(ctx, s.ID, nil); err != nil {
			return err
		}
	}
	var missing []*operation
	for _, s := range spec.Snapshots {
		op, err := b.snapshotOperation(ctx, s)
		if err != nil {
			return b.undoGroup(ctx, spec, err)
		}
		if op != nil {
			missing = append(missing, op)
		}
	}
	return b.undoGroup(ctx, spec, b.queue.doAll(ctx, missing))
}

// undoGroup removes all snapshots of a group after a refusal that promises that nothing was
// made; other errors, and none, stay as they are.
func (b *Backend) undoGroup(ctx context.Context, spec volume.GroupSnapshotSpec, cause error) error {
	if !errors.Is(cause, volume.ErrNoSpace) && !errors.Is(cause, volume.ErrInvalid) && !errors.Is(cause, volume.ErrNotFound) {
		return cause
	}
	for _, s := range spec.Snapshots {
		if err := b.DeleteSnapshot(ctx, s.ID, nil); err != nil {
			// Something is left, so the answer is not the one that promises that nothing is.
			return fmt.Errorf("take back what was made of group snapshot %s, which was refused (%v): %w", spec.Name, cause, err) //nolint:errorlint // see above
		}
	}
	return cause
}

// markAll puts the tag of one instant on all snapshots of a group.
func (b *Backend) markAll(ctx context.Context, spec volume.GroupSnapshotSpec, taken time.Time) error {
	var marks []*operation
	for _, s := range spec.Snapshots {
		name := snapshotPrefix + s.ID
		_, lv, err := b.look(ctx, s.ID, name, nil)
		if err != nil {
			return err
		}
		if lv == nil {
			return fmt.Errorf("mark snapshot %s/%s: %w: somebody has removed it meanwhile", b.group.GroupName, s.ID, volume.ErrBusy)
		}
		marks = append(marks, &operation{verb: verbMark, name: name, uuid: lv.UUID, tag: TagInstant + taken.UTC().Format(instantLayout)})
	}
	return b.queue.doAll(ctx, marks)
}

// groupTaken returns the group snapshot when it stands: each of its snapshots has the tag of
// the same instant.
func groupTaken(g *Group, spec volume.GroupSnapshotSpec) (volume.GroupSnapshot, bool) {
	var found volume.GroupSnapshot
	first := ""
	for _, s := range spec.Snapshots {
		lv := g.Volume(snapshotPrefix + s.ID)
		if lv == nil || !ownedSnapshot(lv) {
			return volume.GroupSnapshot{}, false
		}
		tags := lv.instants()
		if len(tags) != 1 || first != "" && tags[0] != first {
			return volume.GroupSnapshot{}, false
		}
		first = tags[0]
		found.Records = append(found.Records, record(g, lv))
	}
	taken, err := time.Parse(instantLayout, strings.TrimPrefix(first, TagInstant))
	found.TakenAt = taken
	return found, err == nil
}

// instants are the tags that say when a snapshot of a group was taken.
func (lv *LogicalVolume) instants() []string {
	return slices.DeleteFunc(slices.Clone(lv.Tags), func(tag string) bool { return !strings.HasPrefix(tag, TagInstant) })
}

// takeInstant takes the snapshots of a group anew, alone in the queue.
func (q *queue) takeInstant(ctx context.Context, op *operation) {
	fail := func(err error) {
		op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.group.Name, err))
	}
	g, err := q.current(ctx)
	if err != nil {
		fail(err)
		return
	}
	if err := op.allowed(g); err != nil {
		fail(err)
		return
	}
	if err := q.resume(ctx, g); err != nil {
		fail(err)
		return
	}
	i, err := g.instantOf(*op.group)
	if err != nil {
		fail(err)
		return
	}
	q.mayHang = true
	err = q.instants.Take(ctx, i)
	// Also what is left standing still by one who was killed.
	if resumeErr := q.resume(ctx, g); err == nil {
		err = resumeErr
	}
	if err != nil {
		q.known = nil
		fail(err)
		return
	}
	q.unflushed = true
	op.answer(g, nil)
}

// instantOf says by which numbers the pool knows the volumes of a group and their snapshots.
// What is not proven to be a snapshot of ours, of that volume, is not touched.
func (g *Group) instantOf(spec volume.GroupSnapshotSpec) (Instant, error) {
	pool, err := g.thinPool()
	if err != nil {
		return Instant{}, err
	}
	if pool == nil {
		return Instant{}, fmt.Errorf("%w: volume group %s has no thin pool", volume.ErrInvalid, g.Name)
	}
	i := Instant{GroupName: g.Name, GroupUUID: g.UUID, Seqno: g.Seqno, PoolUUID: pool.UUID}
	for _, pv := range g.PVs {
		i.Devices = append(i.Devices, pv.Path)
	}
	for _, s := range spec.Snapshots {
		origin, snapshot := g.volumeByUUID(s.Volume.LVM.LVUUID), g.Volume(snapshotPrefix+s.ID)
		switch {
		case origin == nil || snapshot == nil:
			return Instant{}, fmt.Errorf("%w: volume %s or its snapshot %s", volume.ErrNotFound, s.VolumeID, s.ID)
		case !ownedVolume(origin) || !ownedSnapshot(snapshot) || !origin.isThin(pool) || !snapshot.isThin(pool) || snapshot.OriginUUID != origin.UUID:
			return Instant{}, fmt.Errorf("%w: %s is not a snapshot of ours of volume %s", volume.ErrIdentity, snapshot.Name, s.VolumeID)
		case snapshot.SizeBytes != origin.SizeBytes:
			return Instant{}, fmt.Errorf("%w: volume %s has grown meanwhile", volume.ErrBusy, s.VolumeID)
		case origin.ThinNumber <= 0 || snapshot.ThinNumber <= 0 || origin.ThinNumber == snapshot.ThinNumber:
			return Instant{}, fmt.Errorf("%w: lvm says that volume %s has number %d in its pool and its snapshot %d", volume.ErrIdentity, s.VolumeID, origin.ThinNumber, snapshot.ThinNumber)
		}
		i.Copies = append(i.Copies, InstantCopy{OriginUUID: origin.UUID, SnapshotUUID: snapshot.UUID, Origin: origin.ThinNumber, Snapshot: snapshot.ThinNumber})
	}
	return i, nil
}
