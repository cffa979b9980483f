// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

const purgeRecordVersion = 1

// purgeRecord is the node's own record of a left-over that somebody has asked to purge. It is
// the quarantine: what etcd holds can be from an hour ago, this is not.
type purgeRecord struct {
	SchemaVersion int                   `json:"schemaVersion"`
	UID           string                `json:"uid"`
	Kind          v1alpha1.LeftOverKind `json:"kind"`
	Identity      string                `json:"identity"`
	// PoolSet is the pool's, or what placeOfDisk makes of a disk's name: another field would be
	// one that an older agent does not know, and then it would not heed the quarantine.
	PoolSet   string `json:"poolSet"`
	MachineID string `json:"machineID"`
	// Names are what the volume is called; it is locked by the first. NameCut is true when the
	// last may go on.
	Names   []string `json:"names"`
	NameCut bool     `json:"nameCut,omitempty"`
	// Token confirms this quarantine, and no other.
	Token string    `json:"token"`
	Since time.Time `json:"since"`
	// Holds says in words what it is.
	Holds string `json:"holds"`

	State v1alpha1.PurgeState `json:"state"`
	// Storage and Wipe are set once the removal has begun: what is removed, and how. A snapshot
	// says itself how what it has kept is wiped.
	Storage *volume.Record    `json:"storage,omitempty"`
	Wipe    volume.WipePolicy `json:"wipe,omitempty"`
}

func (r *purgeRecord) validate() error {
	switch {
	case r.SchemaVersion != purgeRecordVersion:
		return fmt.Errorf("schemaVersion %d: this Berth understands %d", r.SchemaVersion, purgeRecordVersion)
	case volume.ValidateID(r.UID) != nil:
		return fmt.Errorf("uid %q is not a lower-case UUID", r.UID)
	case r.Identity == "" || r.PoolSet == "" || r.MachineID == "" || len(r.Names) == 0 || slices.Contains(r.Names, "") || r.Token == "" || r.Since.IsZero():
		return errors.New("identity, poolSet, machineID, names, token or since is empty")
	case !isPurgeable(r.Kind):
		return fmt.Errorf("kind %q cannot be purged", r.Kind)
	case r.State != v1alpha1.PurgeQuarantined && r.State != v1alpha1.PurgePurging && r.State != v1alpha1.PurgePurged:
		return fmt.Errorf("state %q is unknown", r.State)
	case r.State == v1alpha1.PurgePurging && r.Kind != v1alpha1.LeftOverRecord && (r.Storage == nil || r.Kind == v1alpha1.LeftOverVolume && r.Wipe == ""):
		return errors.New("a removal has begun, and what is removed is not named")
	}
	return nil
}

// isFor reports whether a request is the one that the record was made for.
func (r *purgeRecord) isFor(poolSet string, req v1alpha1.PurgeRequest) bool {
	return r.PoolSet == poolSet && r.Kind == req.Kind && r.Identity == req.Identity
}

// name is what the volume is locked by.
func (r *purgeRecord) name() string { return r.Names[0] }

// request is the one that the record was made for, as it was confirmed.
func (r *purgeRecord) request() v1alpha1.PurgeRequest {
	return v1alpha1.PurgeRequest{UID: r.UID, Kind: r.Kind, Identity: r.Identity, Confirm: r.Token}
}

func (r *purgeRecord) key() string { return r.UID }

func (r *purgeRecord) stamp() { r.SchemaVersion = purgeRecordVersion }

// purgeRecords has one record for each left-over that somebody has asked to purge, by its UID.
type purgeRecords struct {
	files recordStore[purgeRecord, *purgeRecord]

	mu sync.Mutex
	// all by UID; damaged is why a file cannot be read. Records are never changed, but put
	// anew.
	all     map[string]*purgeRecord
	damaged map[string]error
	// step is called around each step that changes something; tests end the process there.
	step func() error
}

// openPurgeRecords reads what is in the directory, which is made when it is missing. A damaged
// file is no quarantine and no order: it keeps its left-over from being purged.
func openPurgeRecords(dir string) (*purgeRecords, error) {
	isKey := func(uid string) bool { return volume.ValidateID(uid) == nil }
	d := &purgeRecords{
		files: recordStore[purgeRecord, *purgeRecord]{dir: dir, of: "the purge of", isKey: isKey},
		all:   map[string]*purgeRecord{}, damaged: map[string]error{}, step: func() error { return nil },
	}
	if err := d.files.clean(); err != nil {
		return nil, err
	}
	uids, err := d.files.keys()
	if err != nil {
		return nil, err
	}
	for _, uid := range uids {
		switch r, err := d.files.load(uid); {
		case err != nil:
			d.damaged[uid] = err
		case r != nil:
			d.all[uid] = r
		}
	}
	return d, nil
}

// get returns nil without an error when there is none.
func (d *purgeRecords) get(uid string) (*purgeRecord, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[uid], d.damaged[uid]
}

func (d *purgeRecords) ofPool(poolSet string) (all []*purgeRecord) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.all {
		if r.PoolSet == poolSet {
			all = append(all, r)
		}
	}
	return all
}

// disks are those that records are about.
func (d *purgeRecords) disks() (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.all {
		if name, isDisk := diskOfPlace(r.PoolSet); isDisk && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// put writes a record in the place of old, which is nil for none, and is durable when it returns
// nil. errKept: old is not what is there any more, and nothing was written.
func (d *purgeRecords) put(old, r *purgeRecord) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[r.UID] != old {
		return fmt.Errorf("%w: the request was withdrawn or changed meanwhile", errKept)
	}
	if err := d.step(); err != nil {
		return err
	}
	if err := d.files.save(r); err != nil {
		return err
	}
	d.all[r.UID] = r
	return d.step()
}

// remove ends a record for good, and is durable when it returns nil. errKept: another has taken its
// place, and nothing was ended: the removal may have begun meanwhile.
func (d *purgeRecords) remove(old *purgeRecord) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.all[old.UID] {
	case old:
	case nil:
		return nil
	default:
		return fmt.Errorf("%w: the purge went on meanwhile", errKept)
	}
	if err := d.step(); err != nil {
		return err
	}
	if err := d.files.remove(old.UID); err != nil {
		return err
	}
	delete(d.all, old.UID)
	return d.step()
}

// newPurgeToken is one that nobody has seen.
func newPurgeToken() string { return strings.ToLower(rand.Text()[:12]) }
