// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"time"
)

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

// GroupSnapshotter is a Snapshotter that can copy several volumes at one and the same
// instant.
type GroupSnapshotter interface {
	Snapshotter

	// SnapshotGroup makes a snapshot of each of several volumes, all at one instant: what
	// was written to one of them after it was in none of the others' snapshots, as after a
	// loss of power. Or it finds those that an earlier call made: both return the same. What
	// is said of Snapshot about filesystems holds. The volumes stand still for that moment,
	// for a bounded time, also when this process is killed in it.
	//
	// Each snapshot is deleted by DeleteSnapshot, like any other.
	//
	// ErrNoSpace, ErrInvalid and ErrNotFound promise that nothing was made. ErrIdentity:
	// TakenAt is set, and what was taken then is not all there any more.
	SnapshotGroup(ctx context.Context, spec GroupSnapshotSpec) (GroupSnapshot, error)
}

// GroupSnapshotSpec is a wish for snapshots that are taken at one instant.
type GroupSnapshotSpec struct {
	// Name is for people.
	Name string
	// Snapshots of different volumes.
	Snapshots []SnapshotSpec
	// TakenAt is set when somebody was told that the group was taken: then it is found, or
	// refused, but never taken again.
	TakenAt time.Time
}

// GroupSnapshot is a group of snapshots that stand.
type GroupSnapshot struct {
	// TakenAt is the instant, a moment after it at most.
	TakenAt time.Time
	// Records of the snapshots, in the order of the spec.
	Records []Record
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
