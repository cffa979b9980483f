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

	// A snapshot outlives its volume, and keeps its room until it is deleted. Where snapshots
	// keep what is overwritten in a room of their own, one whose room is full is lost, and
	// the volume is not.

	// DeleteSnapshot gives the room of a snapshot back. rec may be nil when nothing was
	// ever recorded. It returns nil when the snapshot is proven absent. Volumes that were
	// made of it stand for themselves.
	DeleteSnapshot(ctx context.Context, id string, rec *Record) error

	// AbandonCopy removes what a Create with a Source has left that came to no end, which was
	// handed to nobody; nil when there is nothing. It does not touch volumes.
	AbandonCopy(ctx context.Context, id string) error

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
	// Wipe is the volume's policy: what a snapshot keeps of it is wiped by it. Empty where it
	// is not known, and then nothing is.
	Wipe WipePolicy
	// NoWait is as in Source.
	NoWait bool
}

// Source is what a new volume begins as a copy of. The volume has its bytes and at least
// its size, and stands for itself as soon as it was made.
type Source struct {
	// ID of the snapshot, or of the volume, and the record it is known by. A call that finds the
	// copy whole needs no record: what it was made of may be gone.
	ID     string
	Record Record
	// Snapshot is true for a snapshot.
	Snapshot bool
	// Wipe is the policy by which what was copied is wiped when the copy is given up.
	Wipe WipePolicy
	// Secured, if not nil, is called when the source need not be kept from changing or from
	// being deleted any more, once at least in a call that succeeds. Where a copy takes long
	// that is before it is done.
	Secured func()
	// Progress, if not nil, is told how much has been copied, where that takes long.
	Progress func(doneBytes, totalBytes int64)
	// NoWait has a NoTurn returned where the copy would wait for others.
	NoWait bool
}

// NoTurn is an ErrBusy: as much is being copied as may be at once. What was begun for this copy
// stays for the next attempt.
type NoTurn struct {
	// Await returns when there was a turn, or with the context's error. It may be gone again.
	Await func(ctx context.Context) error
}

func (*NoTurn) Error() string { return "it waits until something else was copied" }

// Unwrap makes it an ErrBusy.
func (*NoTurn) Unwrap() error { return ErrBusy }
