// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// isPurgeable reports whether left-overs of a kind are Berth's, and can be named in full.
func isPurgeable(kind v1alpha1.LeftOverKind) bool {
	return kind == v1alpha1.LeftOverVolume || kind == v1alpha1.LeftOverSnapshot || kind == v1alpha1.LeftOverRecord
}

// recorded is the entry that the ledger has of a left-over. Snapshots have none.
func (p *Purger) recorded(kind v1alpha1.LeftOverKind, uid string) (ledger.Entry, error) {
	if kind == v1alpha1.LeftOverSnapshot {
		return ledger.Entry{}, ledger.ErrNotFound
	}
	return p.Ledger.Get(uid)
}

// firstOf are the first of some names, and how many there are more.
func firstOf(names []string) string {
	const most = 4
	said := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		said += fmt.Sprintf(" and %d more", more)
	}
	return said
}

// examinerOf is what looks at left-overs of a kind; errKept where nothing does.
func examinerOf(b volume.Backend, kind v1alpha1.LeftOverKind) (volume.Examiner, error) {
	if kind == v1alpha1.LeftOverSnapshot {
		if x, ok := b.(volume.SnapshotExaminer); ok {
			return snapshotExaminer{x}, nil
		}
	} else if x, ok := b.(volume.Examiner); ok {
		return x, nil
	}
	return nil, fmt.Errorf("%w: what is of kind %q cannot be examined in its pool", errKept, kind)
}

// snapshotExaminer looks at snapshots as at volumes.
type snapshotExaminer struct{ of volume.SnapshotExaminer }

func (x snapshotExaminer) Examine(ctx context.Context, id string) (volume.Examination, error) {
	return x.of.ExamineSnapshot(ctx, id)
}

func (x snapshotExaminer) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	return x.of.ProveSnapshotUnused(ctx, id, rec)
}

// remove ends what was proven, as it is ended where it has an object.
func (p *Purger) remove(ctx context.Context, place PurgePlace, rec *purgeRecord, found provenLeftOver) error {
	switch rec.Kind {
	case v1alpha1.LeftOverRecord:
		return p.Carver.Journal.Remove(rec.UID)
	case v1alpha1.LeftOverSnapshot:
		s, ok := place.Backend.(volume.Snapshotter)
		if !ok {
			return fmt.Errorf("%w: volumes of mode %s have no snapshots", errKept, place.Mode)
		}
		if err := s.DeleteSnapshot(ctx, rec.UID, rec.Storage); err != nil {
			return fmt.Errorf("delete snapshot %s: %w", rec.name(), err)
		}
		return nil
	}
	return p.Carver.remove(ctx, place.Backend, found.entry, found.known)
}

// proveSnapshotUnpublished returns volume.ErrInUse when somebody has put the device of a snapshot
// somewhere, and does not happen to read it right now.
func (p *Purger) proveSnapshotUnpublished(ctx context.Context, x volume.Examination) error {
	if x.Device == "" {
		return nil
	}
	mounts, err := p.Carver.Mounts.MountsOf(ctx, x.Device)
	if err != nil {
		return fmt.Errorf("look for who has %s: %w", x.Device, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is published at %s: %w", x.Device, mounts[0], volume.ErrInUse)
	}
	return nil
}

// volumeOf is the volume that a snapshot was taken of, as the disk and the ledger call it; "" where
// neither knows it. formatted is its filesystem, by the ledger.
func volumeOf(entries func(uid string) (ledger.Entry, error), x volume.Examination) (of, formatted string) {
	if x.Of == "" {
		return "", ""
	}
	name := x.OfName
	if e, err := entries(x.Of); err == nil {
		name, formatted = e.Name, e.FSType
	}
	return strings.TrimSpace(name + " (" + x.Of + ")"), formatted
}

// describeSnapshot says in words what is lost with a snapshot. It is not activated to be read: it
// has the filesystem's UUID of its volume, which two devices must not show.
func (p *Purger) describeSnapshot(ctx context.Context, place PurgePlace, x volume.Examination) []string {
	of, formatted := volumeOf(p.Ledger.Get, x)
	if of == "" {
		of = "that the node does not know any more"
	}
	parts := []string{"snapshot " + x.Name, "of volume " + of, mebibytes(x.Record.SizeBytes)}
	switch {
	case place.Mode == volume.ModeHostpath:
		parts = append(parts, "a directory")
	case x.Device != "":
		parts = append(parts, p.filesystemAt(ctx, x.Device))
	case formatted != "":
		parts = append(parts, "its volume has an "+formatted+", and the snapshot is not active to be read")
	default:
		parts = append(parts, "it is not active to be read")
	}
	return parts
}

func mebibytes(sizeBytes int64) string { return fmt.Sprintf("%d MiB", sizeBytes>>20) } //nolint:mnd // MiB
