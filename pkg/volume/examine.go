// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"time"
)

// Examiner is a Backend that can say of its volumes what is known of them without any
// object, for somebody who has to decide whether one is given up.
type Examiner interface {
	// Examine returns what the place itself knows of a volume. It changes nothing and makes
	// nothing reachable. ErrNotFound means proven absent (I4); what is there under the ID and
	// has no mark of ours is ErrExists or ErrNotFound, never an examination.
	Examine(ctx context.Context, id string) (Examination, error)

	// ProveUnused returns nil when nobody has the volume of that very record mounted, open or
	// below another device right now, and ErrInUse when somebody has. It may activate a
	// logical volume, and changes nothing else.
	ProveUnused(ctx context.Context, id string, rec Record) error
}

// SnapshotExaminer is a Snapshotter that can say of its snapshots what an Examiner says of its
// volumes.
type SnapshotExaminer interface {
	Snapshotter

	// ExamineSnapshot is Examine for a snapshot that ListSnapshots returns.
	ExamineSnapshot(ctx context.Context, id string) (Examination, error)

	// ProveSnapshotUnused is ProveUnused for a snapshot. It activates nothing: what is not active
	// nobody has, and a snapshot that is has the filesystem's UUID of its volume.
	ProveSnapshotUnused(ctx context.Context, id string, rec Record) error
}

// Examination is what a place knows of a volume, or of a snapshot.
type Examination struct {
	Record Record
	// Identity names the thing on the disk in full: another one never has the same, also when
	// it lies at the same place under the same ID. But a disk is the same one whosever it is.
	Identity string
	// Device is where it can be reached right now; empty when nobody has activated it, and in
	// mode hostpath.
	Device string
	// Name of the volume, or of the snapshot, that it was made for, as a mark beside it says;
	// empty when that says nothing.
	Name string
	// NameCut is true when the volume's name may go on behind Name.
	NameCut bool
	// Claim is the namespace and the name of the claim, with a slash between them; empty when
	// nothing says it.
	Claim string
	// Made is when it was made, and Changed when something was changed in its uppermost
	// directory last; zero where that is not known.
	Made, Changed time.Time
	// Of is the volume that a snapshot was taken of, by its ID, and OfName what that is called;
	// empty where that is not known.
	Of, OfName string
	// Snapshots are those of a volume that are in the same place, each by its ID, and by its name
	// where that is known.
	Snapshots []string
	// Gone is true when there is the mark alone: a deletion that was cut short may have left that.
	Gone bool
}
