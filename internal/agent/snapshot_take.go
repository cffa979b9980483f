// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// take makes the snapshot and writes it into s's status, not yet to the API server.
func (r *SnapshotReconciler) take(ctx context.Context, s *v1alpha1.LocalSnapshot) error {
	taken, err := r.make(ctx, s)
	if err != nil {
		setSnapshotCondition(s, err)
		return err
	}
	rec, from := taken.record, taken.source
	s.Status = v1alpha1.LocalSnapshotStatus{
		CreationTime: &taken.at,
		RestoreSize:  resource.NewQuantity(from.encryption().Usable(rec.SizeBytes), resource.BinarySI),
		VolumeMode:   v1alpha1.VolumeMode(from.Access), FSType: from.FSType, FilesystemUUID: from.FSUUID,
		Encryption: from.encryptionStatus(),
		MachineID:  r.MachineID,
		Conditions: s.Status.Conditions,
	}
	if l := rec.LVM; l != nil {
		s.Status.LVM = &v1alpha1.LVMRecord{VGName: l.VGName, VGUUID: l.VGUUID, LVName: l.LVName, LVUUID: l.LVUUID}
	}
	if h := rec.Hostpath; h != nil {
		s.Status.Hostpath = &v1alpha1.HostpathRecord{Root: h.Root, Directory: h.Directory, RootID: h.RootID}
	}
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
		Type: v1alpha1.LocalSnapshotReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonTaken,
		Message: "the snapshot stands", ObservedGeneration: s.Generation,
	})
	return nil
}

// takenSnapshot is a snapshot that stands: what was made, of what, and when.
type takenSnapshot struct {
	record volume.Record
	source copySource
	at     metav1.Time
}

func (r *SnapshotReconciler) make(ctx context.Context, s *v1alpha1.LocalSnapshot) (takenSnapshot, error) {
	if s.Spec.Group != nil {
		return r.makeOfGroup(ctx, s)
	}
	if e, err := r.Ledger.ByName(s.Spec.VolumeName); err == nil && e.Mode == volume.ModeHostpath {
		return r.makeOfDirectory(ctx, s)
	}
	// The volume must not be wiped while it is copied.
	unlock, err := r.Locks.Lock(ctx, s.Spec.VolumeName)
	if err != nil {
		return takenSnapshot{}, err
	}
	defer unlock()
	from, err := r.sourceOf(s)
	if err != nil {
		return takenSnapshot{}, err
	}
	snapshots, err := r.snapshotter(volume.ModeLVM, from.Pool)
	if err != nil {
		return takenSnapshot{}, refusedIf(err, volume.ErrInvalid)
	}
	if from.FSType == mount.Btrfs && isThick(snapshots) {
		// The kernel takes two devices with one filesystem UUID for one filesystem, and the
		// snapshot of a thick volume is a device.
		return takenSnapshot{}, fmt.Errorf("%w: a btrfs in a thick volume cannot be snapshotted: the snapshot would be a second device with its UUID: %w", errRefused, volume.ErrInvalid)
	}
	taken := takenSnapshot{source: from}
	if from.Encryption == nil || isThick(snapshots) {
		taken.record, taken.at, err = r.takeOne(ctx, s, snapshots, from)
	} else {
		taken.record, taken.at, err = r.takeAlone(ctx, s, from)
	}
	if err != nil {
		// These promise that nothing was made.
		return takenSnapshot{}, refusedIf(fmt.Errorf("take snapshot %s: %w", s.Name, err), volume.ErrInvalid, volume.ErrNoSpace)
	}
	r.Backends.Touch(from.Pool)
	return taken, nil
}

// makeOfDirectory takes the snapshot of a volume of mode hostpath, apart from this worker.
func (r *SnapshotReconciler) makeOfDirectory(ctx context.Context, s *v1alpha1.LocalSnapshot) (takenSnapshot, error) {
	s = s.DeepCopy() // it may go on when this call has ended
	name := s.Name
	e, err := r.works.do(ctx, string(s.UID), "copying", func() { r.queue.add(name) },
		func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
			return inTurn(ctx, func() (ledger.Entry, error) { return r.copyDirectory(ctx, s) })
		})
	if err != nil {
		return takenSnapshot{}, err
	}
	r.Backends.Touch(e.Pool)
	return takenSnapshot{record: *e.Record, source: copySource{Pool: e.Pool, Access: e.Access}, at: metav1.Now()}, nil
}

// copyDirectory makes the copy that is the snapshot of a directory. Until it is done no pod gets
// the volume.
func (r *SnapshotReconciler) copyDirectory(ctx context.Context, s *v1alpha1.LocalSnapshot) (ledger.Entry, error) {
	unlock, err := r.Locks.Lock(ctx, s.Spec.VolumeName)
	if err != nil {
		return ledger.Entry{}, err
	}
	defer unlock()
	from, err := r.sourceOf(s)
	if err != nil {
		return ledger.Entry{}, err
	}
	snapshots, err := r.snapshotter(volume.ModeHostpath, from.Pool)
	if err != nil {
		return ledger.Entry{}, refusedIf(err, volume.ErrInvalid)
	}
	spec := specOf(s, from)
	spec.NoWait = true
	rec, err := snapshots.Snapshot(ctx, spec)
	if err != nil {
		return ledger.Entry{}, refusedIf(fmt.Errorf("take snapshot %s: %w", s.Name, err), volume.ErrInvalid, volume.ErrNoSpace)
	}
	return ledger.Entry{Pool: from.Pool, Access: from.Access, Record: &rec}, nil
}

// takeOne takes a snapshot. What uses an encrypted volume is held up meanwhile: lvm freezes
// only a filesystem that is right on what it copies.
func (r *SnapshotReconciler) takeOne(ctx context.Context, s *v1alpha1.LocalSnapshot, snapshots volume.Snapshotter, from copySource) (rec volume.Record, at metav1.Time, err error) {
	resume := func() error { return nil }
	if from.Encryption != nil {
		b, err := r.Backends.ForExisting(volume.ModeLVM, from.Pool)
		if err != nil {
			return rec, at, err
		}
		if resume, err = quiesce(ctx, r.Encrypted, b, from); err != nil {
			return rec, at, err
		}
	}
	rec, err = snapshots.Snapshot(ctx, specOf(s, from))
	at = metav1.Now()
	return rec, at, errors.Join(err, resume())
}

// isThick reports whether the volumes of a backend have their room for themselves.
func isThick(snapshots volume.Snapshotter) bool {
	b, ok := snapshots.(interface{ Thick() bool })
	return ok && b.Thick()
}

// takeAlone takes the snapshot of an encrypted volume, as that of a group of which it is the
// only one: lvm freezes only a filesystem that is right on what it copies, and this one is on
// the open device above.
func (r *SnapshotReconciler) takeAlone(ctx context.Context, s *v1alpha1.LocalSnapshot, from copySource) (volume.Record, metav1.Time, error) {
	groups, err := r.grouper(from.Pool)
	if err != nil {
		return volume.Record{}, metav1.Time{}, err
	}
	group, err := groups.SnapshotGroup(ctx, volume.GroupSnapshotSpec{Name: s.Name, Snapshots: []volume.SnapshotSpec{specOf(s, from)}})
	if err != nil {
		return volume.Record{}, metav1.Time{}, err
	}
	return group.Records[0], metav1.NewTime(group.TakenAt), nil
}

// sourceOf finds the volume of a snapshot.
func (r *SnapshotReconciler) sourceOf(s *v1alpha1.LocalSnapshot) (copySource, error) {
	e, err := r.Ledger.ByName(s.Spec.VolumeName)
	switch {
	case errors.Is(err, ledger.ErrNotFound), err == nil && e.UID != string(s.Spec.VolumeUID):
		return copySource{}, fmt.Errorf("%w: LocalVolume %s (%s) is not on this node: %w", errRefused, s.Spec.VolumeName, s.Spec.VolumeUID, volume.ErrInvalid)
	case err != nil:
		return copySource{}, err
	case e.Mode == volume.ModeDevice, e.Mode == volume.ModeHostpath && s.Spec.Group != nil:
		return copySource{}, fmt.Errorf("%w: volumes of mode %s have no snapshots%s: %w", errRefused, e.Mode, ofGroup(s), volume.ErrInvalid)
	}
	from, err := sourceOf(e, r.MachineID)
	return from, refusedIf(err, volume.ErrInvalid)
}

// ofGroup are the words for the snapshots of a group.
func ofGroup(s *v1alpha1.LocalSnapshot) string {
	if s.Spec.Group != nil {
		return " that are taken at one instant"
	}
	return ""
}

func specOf(s *v1alpha1.LocalSnapshot, from copySource) volume.SnapshotSpec {
	wipe := from.Wipe
	if from.Encryption != nil {
		// It keeps the key slots that the volume's deletion destroys.
		wipe = volume.WipeZero
	}
	return volume.SnapshotSpec{ID: string(s.UID), Name: s.Name, VolumeID: from.ID, Volume: from.Record, Wipe: wipe}
}

// refusedIf marks an error as a final answer if it is one of those.
func refusedIf(err error, final ...error) error {
	if errors.Is(err, errRefused) {
		return err
	}
	for _, sentinel := range final {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	return err
}
