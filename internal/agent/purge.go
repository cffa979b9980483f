// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// purgeInterval is how often is looked again at what somebody has asked to purge: it may have
// an owner by now.
const (
	purgeInterval = time.Minute
	// mostPurges is how many a Pool can ask for, and show.
	mostPurges = 32
)

// errKept marks what keeps a left-over from being purged or adopted until somebody does
// something. Any other error says nothing of it.
var errKept = errors.New("it is kept as it is")

// PurgeOptions of a Purger.
type PurgeOptions struct {
	// Live reads from the API server, past the cache.
	Live   client.Reader
	Carver *Carver
	Ledger *ledger.Ledger
	// Directory of the node's records of purges.
	Directory string
	// Filesystems says what is on a volume.
	Filesystems Filesystems
	// DiskTouched is called when a whole disk that somebody has asked to purge is to be looked at
	// again; nil where none can be. It must not block.
	DiskTouched func(name string)
	// PlaceOfDisk makes a whole disk the place of what is left over on it; nil where none is.
	PlaceOfDisk func(bd *v1alpha1.BlockDevice) PurgePlace
	Log         *slog.Logger
}

// Purger removes left-overs that a person has asked to be removed, in two phases (I5): it proves
// that one is Berth's, nobody's and not in use, puts it into quarantine and makes a token up;
// when the person has confirmed by that token, it proves everything again, under the volume's
// lock, and deletes it as volumes are deleted.
//
// The token is in a record on the node. What an API server says that was restored to an hour
// ago confirms a quarantine of an hour ago, which is not this one.
type Purger struct {
	PurgeOptions

	records *purgeRecords
	works   works

	mu sync.Mutex
	// looks are what the last look at each request gave.
	looks map[string]purgeLook
}

// purgeLook is what a look gave, and at which request.
type purgeLook struct {
	poolSet string
	request v1alpha1.PurgeRequest
	at      time.Time
	status  v1alpha1.PurgeStatus
}

// NewPurger reads the records of the node.
func NewPurger(o PurgeOptions) (*Purger, error) {
	records, err := openPurgeRecords(o.Directory)
	if err != nil {
		return nil, err
	}
	for uid, err := range records.damaged {
		o.Log.Error("A record of a purge cannot be read; what it is about is not purged", "uid", uid, "error", err)
	}
	return &Purger{PurgeOptions: o, records: records, looks: map[string]purgeLook{}}, nil
}

// PurgePlace is the pool that left-overs are in, or the disk that one is.
type PurgePlace struct {
	// PoolSet is its name, or what placeOfDisk makes of that of a disk.
	PoolSet string
	Mode    volume.Mode
	Backend volume.Backend
	// Links are stable paths of a disk.
	Links []string
	// Kept says why nothing is purged here; empty where it can be.
	Kept string
	// Again looks at the pool soon.
	Again func()
}

// ledgerPool is what the ledger calls the pool: a disk is none.
func (p PurgePlace) ledgerPool() string {
	if p.Mode == volume.ModeDevice {
		return ""
	}
	return p.PoolSet
}

// Quarantined reports whether a volume is not handed to pods because somebody has asked to
// purge it, and has the pool looked at again: a pod that asks for it has a PersistentVolume.
func (p *Purger) Quarantined(uid string) bool {
	rec, err := p.records.get(uid)
	if err != nil || rec == nil || rec.State == v1alpha1.PurgePurged {
		return false
	}
	p.mu.Lock()
	delete(p.looks, uid)
	p.mu.Unlock()
	p.touch(rec.PoolSet)
	return true
}

// Tend brings what is asked for one step further, and returns how far each request is, and when
// to look again; 0 for not before something happens.
func (p *Purger) Tend(ctx context.Context, place PurgePlace, requests []v1alpha1.PurgeRequest) (all []v1alpha1.PurgeStatus, wait time.Duration) {
	asked := map[string]bool{}
	for _, req := range requests {
		asked[req.UID] = true
	}
	p.mu.Lock()
	maps.DeleteFunc(p.looks, func(uid string, l purgeLook) bool { return l.poolSet == place.PoolSet && !asked[uid] })
	p.mu.Unlock()
	for _, rec := range p.records.ofPool(place.PoolSet) {
		switch {
		case asked[rec.UID]:
		case rec.State == v1alpha1.PurgePurging:
			// What has begun is ended: its data are lost already.
			requests = append(slices.Clip(requests), rec.request())
		default:
			if err := p.records.remove(rec); err != nil {
				p.Log.Error("A quarantine that was withdrawn cannot be ended", "uid", rec.UID, "error", err)
			} else {
				p.Log.Info("Ended the purge of a left-over that nobody asks for any more", "uid", rec.UID, "state", rec.State)
			}
		}
	}
	for _, req := range requests {
		status := p.look(ctx, place, req)
		if status.State != v1alpha1.PurgePurged {
			wait = purgeInterval
		}
		all = append(all, status)
	}
	// One that goes on without its request is not shown where there is no place.
	return all[:min(len(all), mostPurges)], wait
}

// look answers from the last look as long as that is fresh: a pool is looked at whenever
// something happens in it, and each look here reads all PersistentVolumes.
func (p *Purger) look(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) v1alpha1.PurgeStatus {
	p.mu.Lock()
	last, known := p.looks[req.UID]
	p.mu.Unlock()
	resting := last.status.State == v1alpha1.PurgeQuarantined || last.status.State == v1alpha1.PurgeRefused || last.status.State == v1alpha1.PurgePurged
	if known && resting && last.request == req && time.Since(last.at) < purgeInterval {
		return last.status
	}
	status := p.tend(ctx, place, req)
	status.UID = req.UID
	status.Message, status.Holds = forStatus(status.Message), forStatus(status.Holds)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks[req.UID] = purgeLook{place.PoolSet, req, time.Now(), status}
	return status
}

// tend brings one request a step further.
func (p *Purger) tend(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) v1alpha1.PurgeStatus {
	rec, err := p.records.get(req.UID)
	if err == nil {
		err = volume.ValidateID(req.UID)
	}
	if err == nil && rec != nil && rec.MachineID != p.Carver.MachineID {
		err = fmt.Errorf("its purge was recorded on the machine %s, and this is %s: %w", rec.MachineID, p.Carver.MachineID, volume.ErrIdentity)
	}
	if err != nil {
		return refusedPurge(err)
	}
	if rec != nil && !rec.isFor(place.PoolSet, req) {
		if rec.State == v1alpha1.PurgePurging {
			return v1alpha1.PurgeStatus{State: v1alpha1.PurgeWaiting, Message: fmt.Sprintf("the removal of %s %s in pool %s has begun, and is ended first", rec.UID, rec.Identity, rec.PoolSet)}
		}
		if err := p.records.remove(rec); err != nil {
			return waitingPurge(nil, err)
		}
		rec = nil
	}
	switch {
	case rec != nil && rec.State == v1alpha1.PurgePurged:
		return purged(rec)
	case rec != nil && rec.State == v1alpha1.PurgePurging:
		return p.carryOut(ctx, place, req, rec)
	}
	found, err := p.prove(ctx, place, req)
	if err == nil && rec != nil {
		err = p.proveShown(ctx, place, rec, found)
	}
	if err != nil {
		return p.give(rec, req.UID, err)
	}
	if rec == nil {
		rec = &purgeRecord{
			UID: req.UID, Kind: req.Kind, Identity: req.Identity, PoolSet: place.PoolSet, MachineID: p.Carver.MachineID, Names: found.names(), NameCut: found.exam.NameCut,
			Token: newPurgeToken(), Since: time.Now().UTC().Truncate(time.Second), Holds: p.describe(ctx, place, req.Kind, found), State: v1alpha1.PurgeQuarantined,
		}
		if err := p.records.put(nil, rec); err != nil {
			return waitingPurge(nil, err)
		}
		p.Log.Info("Put a left-over into quarantine that somebody has asked to purge", "uid", rec.UID, "volume", rec.name(), "pool", rec.PoolSet, "holds", rec.Holds)
		// A confirmation that is there already is of another quarantine.
	} else if isConfirmed(rec, req) {
		return p.carryOut(ctx, place, req, rec)
	}
	message := "nobody gets it; it is removed when it is confirmed by the token, and let go when the request is withdrawn"
	if req.Confirm != "" {
		message = "the confirmation is of another quarantine, and nothing was removed: look at what it holds, and confirm by the token of this one"
	}
	return quarantined(rec, v1alpha1.PurgeQuarantined, message)
}

func isConfirmed(rec *purgeRecord, req v1alpha1.PurgeRequest) bool {
	return rec.Token != "" && subtle.ConstantTimeCompare([]byte(rec.Token), []byte(req.Confirm)) == 1
}

// give says what has kept something from being purged. A refusal ends the quarantine: what
// comes after it needs another token.
func (p *Purger) give(rec *purgeRecord, uid string, cause error) v1alpha1.PurgeStatus {
	if !errors.Is(cause, errKept) {
		return waitingPurge(rec, cause)
	}
	if rec == nil {
		return refusedPurge(cause)
	}
	if err := p.records.remove(rec); err != nil {
		return waitingPurge(rec, errors.Join(cause, err))
	}
	p.Log.Warn("Ended a quarantine; the left-over is kept", "uid", uid, "volume", rec.name(), "cause", cause)
	return refusedPurge(fmt.Errorf("the quarantine since %s has ended: %w", rec.Since.Format(time.RFC3339), cause))
}

func refusedPurge(cause error) v1alpha1.PurgeStatus {
	return v1alpha1.PurgeStatus{State: v1alpha1.PurgeRefused, Message: cause.Error()}
}

func waitingPurge(rec *purgeRecord, cause error) v1alpha1.PurgeStatus {
	if rec == nil {
		return v1alpha1.PurgeStatus{State: v1alpha1.PurgeWaiting, Message: cause.Error()}
	}
	return quarantined(rec, v1alpha1.PurgeWaiting, cause.Error())
}

func quarantined(rec *purgeRecord, state v1alpha1.PurgeState, message string) v1alpha1.PurgeStatus {
	since := metav1.NewTime(rec.Since)
	return v1alpha1.PurgeStatus{State: state, Since: &since, Token: rec.Token, Holds: rec.Holds, Message: message}
}

func purged(rec *purgeRecord) v1alpha1.PurgeStatus {
	message := "it was deleted as volumes are, by the wipe policy " + string(rec.Wipe)
	if _, isDisk := diskOfPlace(rec.PoolSet); isDisk {
		message = "the disk was released, and is wiped by the policy " + string(rec.Wipe)
		if rec.Wipe == volume.WipeNone {
			message = "the disk was given back with what is on it: the volume's wipe policy is none"
		}
	}
	switch rec.Kind {
	case v1alpha1.LeftOverRecord:
		message = "the entry was removed from the node's ledger"
	case v1alpha1.LeftOverSnapshot:
		message = "it was deleted as snapshots are"
	}
	return v1alpha1.PurgeStatus{State: v1alpha1.PurgePurged, Holds: rec.Holds, Message: message}
}
