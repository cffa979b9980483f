// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "context"

// Snapshotter is a Backend whose volumes can be copied at an instant: into snapshots,
// which nobody writes to, and, by Spec.Source, into new volumes.
//
// What is said of Backend's methods about crashes, repetition and concurrency holds here.
type Snapshotter interface {
	// Snapshot makes a snapshot of a volume, or finds the one that an earlier call made:
	// both return the same record. A filesystem that is mounted is frozen for the moment
	// it takes, so that the snapshot holds it whole, with nothing of it in memory only.
	//
	// ErrNoSpace, ErrInvalid (this place has no snapshots) and ErrNotFound (the volume was
	// proven absent) promise that nothing was made.
	Snapshot(ctx context.Context, spec SnapshotSpec) (Record, error)

	// DeleteSnapshot gives the room of a snapshot back. rec may be nil when nothing was
	// ever recorded. It returns nil when the snapshot is proven absent. Volumes that were
	// made of it stand for themselves.
	DeleteSnapshot(ctx context.Context, id string, rec *Record) error

	// ListSnapshots returns every snapshot of ours that is in this place, from a successful
	// and complete observation.
	ListSnapshots(ctx context.Context) ([]Found, error)
}

// SnapshotSpec is a wish for a snapshot.
type SnapshotSpec struct {
	// ID names the snapshot on disk: the UID of the LocalSnapshot, a lower-case UUID.
	ID string
	// Name is for people: the LocalSnapshot's name.
	Name string
	// VolumeID and Volume are the volume to copy and the record it is known by.
	VolumeID string
	Volume   Record
}

// Source is what a new volume begins as a copy of. The volume has its bytes and at least
// its size, and stands for itself as soon as it was made.
type Source struct {
	// ID of the snapshot, or of the volume, and the record it is known by.
	ID     string
	Record Record
	// Snapshot is true for a snapshot.
	Snapshot bool
}
