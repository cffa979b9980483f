// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// promise is what a volume was promised. It makes the volume exist.
type promise struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
	// Project is what the filesystem counts the volume's files by, and limits them to
	// SizeBytes; 0 where it limits nothing.
	Project uint32 `json:"project,omitempty"`
	// Qgroup is true when the volume is a subvolume that the filesystem limits to SizeBytes, by
	// the group that has the subvolume's number.
	Qgroup  bool      `json:"qgroup,omitempty"`
	Created time.Time `json:"created"`
	// RetainSeconds is how long what the volume held is kept after it was deleted; 0 not at
	// all.
	RetainSeconds int64 `json:"retainSeconds,omitempty"`
	// Claim is the namespace and the name of the claim that the volume was made for, with a
	// slash between them.
	Claim string `json:"claim,omitempty"`
	// Path is where the volume lies below namedDir; empty where it lies at its ID.
	Path string `json:"path,omitempty"`
	// AdoptedFrom is the path on the host from which the directory was moved here with what is
	// in it; empty for one that was made here.
	AdoptedFrom string `json:"adoptedFrom,omitempty"`
	// TakenFrom is the ID of the volume that the directory was before, as a left-over; empty
	// for one that was none.
	TakenFrom string `json:"takenFrom,omitempty"`
	// Identity of the directory at Path, or of the one that was adopted or taken over: what is there under
	// that name may be another one. Of one at Path it is empty as long as nobody but us could
	// open it.
	Identity string `json:"identity,omitempty"`
	// Source is the ID of the volume or snapshot that it began as a copy of; empty for a volume
	// that began empty. The directory of a copy is there when the copy is whole, and not before.
	Source string `json:"source,omitempty"`
	// Family is the ID of the volume that all begin with that were copied of one another, and
	// may share blocks; empty for that volume itself.
	Family string `json:"family,omitempty"`
	// Snapshot is true for the snapshot of a volume.
	Snapshot bool `json:"snapshot,omitempty"`

	// moved: what it is counted by is another than is written down.
	moved bool
	// at is where it lies, if not at dir.
	at string
}

func promiseFile(id string) string { return promise{ID: id}.file() }
func volumeDir(id string) string   { return volumesDir + "/" + id }

// file is where it is written down.
func (p promise) file() string {
	if p.Snapshot {
		return snapshotRecordDir + "/" + p.ID + recordSuffix
	}
	return promiseDir + "/" + p.ID + recordSuffix
}

// dir is where the volume, or the snapshot, lies in the root.
func (p promise) dir() string {
	switch {
	case p.Snapshot:
		return snapshotsDir + "/" + p.ID
	case p.Path != "":
		return namedDir + "/" + p.Path
	}
	return volumeDir(p.ID)
}

// counted reports whether the filesystem counts what the volume holds, and limits it.
func (p promise) counted() bool { return p.Project != 0 || p.Qgroup }

// place is where it lies in the root.
func (p promise) place() string { return cmp.Or(p.at, p.dir()) }

// countedBy says what the volume is counted by from now on.
func (p *promise) countedBy(project uint32, group bool) {
	p.moved = p.Project != project || p.Qgroup != group
	p.Project, p.Qgroup = project, group
}

// family is what all have in common that were copied of one another.
func (p promise) family() string { return cmp.Or(p.Family, p.ID) }

// parent is the directory in which dir is a name.
func (p promise) parent() (parent, name string) { return path.Dir(p.dir()), path.Base(p.dir()) }

// readPromise returns what the volume was promised, fs.ErrNotExist when it was
// promised nothing.
func readPromise(root *os.Root, id string) (promise, error) { return promise{ID: id}.read(root) }

// readSnapshot is readPromise for a snapshot.
func readSnapshot(root *os.Root, id string) (promise, error) {
	return promise{ID: id, Snapshot: true}.read(root)
}

// read returns what is written down of the volume or snapshot of that ID.
func (p promise) read(root *os.Root) (promise, error) {
	file := p.file()
	data, err := root.ReadFile(file)
	if err != nil {
		return promise{}, err
	}
	var found promise
	if err := json.Unmarshal(data, &found); err != nil {
		return promise{}, fmt.Errorf("read %s: %w", file, err)
	}
	if found.ID != p.ID || found.Snapshot != p.Snapshot || found.SizeBytes <= 0 || found.RetainSeconds < 0 || found.Path != "" && ValidatePath(found.Path) != nil ||
		(found.AdoptedFrom != "" || found.TakenFrom != "") && (found.Path != "" || found.Identity == "") || found.TakenFrom != "" && volume.ValidateID(found.TakenFrom) != nil {
		return promise{}, fmt.Errorf("read %s: it is the promise of %q over %d bytes: %w", file, found.ID, found.SizeBytes, volume.ErrIdentity)
	}
	return found, nil
}

// newSnapshots returns a reader of the snapshots under a root.
func newSnapshots() *records[promise] {
	return newRecords(snapshotRecordDir, func(id string) bool { return volume.ValidateID(id) == nil }, readSnapshot)
}

// newPromises returns a reader of the promises under a root.
func newPromises() *records[promise] {
	return newRecords(promiseDir, func(id string) bool { return volume.ValidateID(id) == nil }, readPromise)
}
