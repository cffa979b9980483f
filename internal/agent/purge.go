// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// purgeInterval is how often is looked again at what somebody has asked to purge: it may have
// an owner by now.
const (
	purgeInterval = time.Minute
	// mostPurges is how many a Pool can ask for, and show.
	mostPurges = 32
)

// errRefusedPurge marks what keeps a left-over from being purged until somebody does something.
// Any other error says nothing of it.
var errRefusedPurge = errors.New("it is not purged")

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

// PurgePlace is the pool that left-overs are in.
type PurgePlace struct {
	PoolSet string
	Mode    volume.Mode
	Backend volume.Backend
	// Again looks at the pool soon.
	Again func()
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
	p.Carver.Backends.Touch(rec.PoolSet)
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
			if err := p.records.remove(rec.UID); err != nil {
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
	const longest = 1024
	status.Message, status.Holds = status.Message[:min(len(status.Message), longest)], status.Holds[:min(len(status.Holds), longest)]
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
		if err := p.records.remove(req.UID); err != nil {
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
	if err != nil {
		return p.give(rec, req.UID, err)
	}
	if rec == nil {
		rec = &purgeRecord{
			UID: req.UID, Kind: req.Kind, Identity: req.Identity, PoolSet: place.PoolSet, MachineID: p.Carver.MachineID, Names: found.names(), NameCut: found.exam.NameCut,
			Token: newPurgeToken(), Since: time.Now().UTC().Truncate(time.Second), Holds: p.describe(ctx, place, found), State: v1alpha1.PurgeQuarantined,
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
	if !errors.Is(cause, errRefusedPurge) {
		return waitingPurge(rec, cause)
	}
	if rec == nil {
		return refusedPurge(cause)
	}
	if err := p.records.remove(uid); err != nil {
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
	if rec.Kind == v1alpha1.LeftOverRecord {
		message = "the entry was removed from the node's ledger"
	}
	return v1alpha1.PurgeStatus{State: v1alpha1.PurgePurged, Holds: rec.Holds, Message: message}
}

// provenLeftOver is something that was proven to be nobody's. entry is the ledger's, or one that
// was made up from what is on the disk.
type provenLeftOver struct {
	entry ledger.Entry
	known bool
	exam  volume.Examination
}

// names are what it is called by the ledger and by the mark on the disk, each once, that of the
// mark last.
func (f provenLeftOver) names() (names []string) {
	for _, name := range []string{f.entry.Name, f.exam.Name} {
		if name != "" && (len(names) == 0 || names[0] != name) {
			names = append(names, name)
		}
	}
	return names
}

// prove returns nil when what a request names is there, is Berth's, is the very thing that was
// named, belongs to no object and is not in use; an error that wraps errRefusedPurge when it is
// proven that it is not so.
func (p *Purger) prove(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) (provenLeftOver, error) {
	found, err := p.identify(ctx, place, req)
	if err != nil {
		return found, err
	}
	e := found.entry
	names := found.names()
	if len(names) == 0 {
		return found, fmt.Errorf("%w: what it was called is not known, so it cannot be told whether a PersistentVolume leads to it", errRefusedPurge)
	}
	if err := p.proveNobodys(ctx, behind(req.UID, names, found.exam.NameCut, e.Record)); err != nil {
		return found, err
	}
	if req.Kind == v1alpha1.LeftOverRecord {
		return found, nil
	}
	return found, p.proveUnused(ctx, place.Backend, e)
}

func (p *Purger) proveNobodys(ctx context.Context, l leftBehind) error {
	owner, err := ownerOf(ctx, p.Live, l)
	if err != nil {
		return fmt.Errorf("look for what it belongs to: %w", err)
	}
	if owner != "" {
		return fmt.Errorf("%w: it belongs to %s", errRefusedPurge, owner)
	}
	return nil
}

func (p *Purger) proveUnused(ctx context.Context, b volume.Backend, e ledger.Entry) error {
	x, ok := b.(volume.Examiner)
	if !ok {
		return fmt.Errorf("%w: volumes of mode %s cannot be examined", errRefusedPurge, e.Mode)
	}
	err := x.ProveUnused(ctx, e.UID, *e.Record)
	if err == nil {
		err = p.Carver.proveUnpublished(ctx, b, e)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, volume.ErrInUse), errors.Is(err, volume.ErrIdentity), errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("%w: %w", errRefusedPurge, err)
	}
	return fmt.Errorf("look whether it is in use: %w", err)
}

// identify finds what a request names, and proves that it is the very thing.
func (p *Purger) identify(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) (found provenLeftOver, err error) {
	if req.Kind != v1alpha1.LeftOverVolume && req.Kind != v1alpha1.LeftOverRecord {
		return found, fmt.Errorf("%w: what is of kind %q cannot be purged", errRefusedPurge, req.Kind)
	}
	x, ok := place.Backend.(volume.Examiner)
	if !ok {
		return found, fmt.Errorf("%w: volumes of mode %s cannot be examined", errRefusedPurge, place.Mode)
	}
	e, err := p.Ledger.Get(req.UID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return found, fmt.Errorf("%w: %w", errRefusedPurge, err)
	case e.MachineID != p.Carver.MachineID || e.Mode != place.Mode || e.Pool != place.PoolSet:
		return found, fmt.Errorf("%w: the node's ledger has it in pool %q on the machine %s", errRefusedPurge, e.Pool, e.MachineID)
	case e.State == ledger.Deleting:
		return found, fmt.Errorf("%w: its deletion has begun, and is ended without anybody's asking", errRefusedPurge)
	default:
		found.entry, found.known = e, true
	}
	if req.Kind == v1alpha1.LeftOverRecord {
		return found, p.identifyRecord(ctx, x, place.Backend, req, found)
	}
	found.exam, err = x.Examine(ctx, req.UID)
	switch {
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrIdentity):
		return found, fmt.Errorf("%w: %w", errRefusedPurge, err)
	case err != nil:
		return found, fmt.Errorf("look at it: %w", err)
	case found.exam.Identity != req.Identity:
		return found, fmt.Errorf("%w: it is another one than was named: this is %q, named is %q", errRefusedPurge, found.exam.Identity, req.Identity)
	case found.known && e.Record != nil && !e.Record.SameStorage(found.exam.Record):
		return found, fmt.Errorf("%w: the node's ledger names other storage for it: %w", errRefusedPurge, volume.ErrIdentity)
	}
	rec := found.exam.Record
	if !found.known {
		found.entry = p.unrecorded(place, req.UID, found.exam.Name, volume.WipeZero)
	}
	found.entry.Record = &rec
	return found, nil
}

// unrecorded is the entry of a volume that the ledger does not know.
func (p *Purger) unrecorded(place PurgePlace, uid, name string, wipe volume.WipePolicy) ledger.Entry {
	e := ledger.Entry{
		UID: uid, Name: name, MachineID: p.Carver.MachineID, Mode: place.Mode, Pool: place.PoolSet, Wipe: wipe,
		State: ledger.Carved, Access: volume.AccessFilesystem,
	}
	if place.Mode != volume.ModeHostpath {
		e.Access = volume.AccessBlock // so that it is looked for in pods as such, too
	}
	return e
}

// identifyRecord proves that an entry of the ledger is the one that was named, and that there is
// nothing on the disks for it.
func (p *Purger) identifyRecord(ctx context.Context, x volume.Examiner, b volume.Backend, req v1alpha1.PurgeRequest, found provenLeftOver) error {
	if !found.known {
		return fmt.Errorf("%w: the node's ledger has no entry of that UID", errRefusedPurge)
	}
	if identity := identityOfEntry(found.entry); identity != req.Identity {
		return fmt.Errorf("%w: the entry is another one than was named: this is %q, named is %q", errRefusedPurge, identity, req.Identity)
	}
	_, err := x.Examine(ctx, req.UID)
	if errors.Is(err, volume.ErrNotFound) && found.entry.Record != nil {
		_, err = b.Locate(ctx, req.UID, *found.entry.Record)
	}
	switch {
	case err == nil, errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrIdentity):
		return fmt.Errorf("%w: there is storage of that name on the node", errRefusedPurge)
	case !errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("look whether there is storage: %w", err)
	}
	return nil
}

// identityOfEntry names one entry of the ledger as it is now.
func identityOfEntry(e ledger.Entry) string {
	data, err := ledger.Encode(e)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return "entry " + hex.EncodeToString(sum[:16])
}

// carryOut removes what was confirmed. It may take hours, and goes on apart from this worker.
func (p *Purger) carryOut(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest, rec *purgeRecord) v1alpha1.PurgeStatus {
	_, err := p.works.do(ctx, req.UID, "wiping", place.Again, func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
		return ledger.Entry{}, p.purge(ctx, place, req)
	})
	now, readErr := p.records.get(req.UID)
	if readErr != nil || now == nil {
		now = rec
	}
	// Not the token: there is nothing to confirm any more.
	begun := func(message string) v1alpha1.PurgeStatus {
		status := quarantined(now, v1alpha1.PurgePurging, message)
		status.Token = ""
		return status
	}
	switch {
	case isWorking(err):
		return begun(err.Error())
	case now.State == v1alpha1.PurgePurged:
		return purged(now)
	case now.State == v1alpha1.PurgePurging:
		return begun(fmt.Sprintf("its removal has begun, and is tried again: %v", err))
	case err == nil:
		err = fmt.Errorf("%w: it was withdrawn", errRefusedPurge)
	}
	return p.give(now, req.UID, err)
}

// purge is the second phase, under the volume's lock.
func (p *Purger) purge(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) error {
	rec, err := p.records.get(req.UID)
	if err != nil || rec == nil {
		return errors.Join(err, fmt.Errorf("%w: it is in no quarantine any more", errRefusedPurge))
	}
	unlock, err := p.Carver.Locks.Lock(ctx, rec.name())
	if err != nil {
		return err
	}
	defer unlock()
	rec, found, err := p.begin(ctx, place, req, rec)
	if err != nil {
		return err
	}
	if rec.Kind == v1alpha1.LeftOverRecord {
		err = p.Carver.Journal.Remove(rec.UID)
	} else {
		err = p.Carver.remove(ctx, place.Backend, found.entry, found.known)
	}
	if err != nil {
		return err
	}
	done := *rec
	done.State, done.Storage, done.Wipe = v1alpha1.PurgePurged, nil, found.entry.Wipe
	if err := p.records.put(rec, &done); err != nil {
		return err
	}
	p.Carver.Backends.Touch(place.PoolSet)
	p.Log.Info("Purged a left-over", "uid", rec.UID, "volume", rec.name(), "pool", rec.PoolSet, "held", rec.Holds, "wipe", found.entry.Wipe)
	return nil
}

// begin proves everything once more and writes down that the removal begins. One that had begun
// before is gone on with.
func (p *Purger) begin(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest, rec *purgeRecord) (*purgeRecord, provenLeftOver, error) {
	if rec.State == v1alpha1.PurgePurging {
		found, err := p.resume(ctx, place, rec)
		return rec, found, err
	}
	if rec.State != v1alpha1.PurgeQuarantined || !rec.isFor(place.PoolSet, req) || !isConfirmed(rec, req) {
		return rec, provenLeftOver{}, fmt.Errorf("%w: it is not confirmed", errRefusedPurge)
	}
	found, err := p.prove(ctx, place, req)
	if err != nil {
		return rec, found, err
	}
	begun := *rec
	begun.State, begun.Storage, begun.Wipe = v1alpha1.PurgePurging, found.entry.Record, found.entry.Wipe
	return &begun, found, p.records.put(rec, &begun)
}

// resume takes up a removal that had begun. What is still there must be the very thing, and
// nobody's.
func (p *Purger) resume(ctx context.Context, place PurgePlace, rec *purgeRecord) (found provenLeftOver, err error) {
	if err := p.proveNobodys(ctx, behind(rec.UID, rec.Names, rec.NameCut, rec.Storage)); err != nil {
		return found, err
	}
	e, err := p.Ledger.Get(rec.UID)
	switch {
	case err == nil:
		found.known = true
	case !errors.Is(err, ledger.ErrNotFound):
		return found, err
	default:
		e = p.unrecorded(place, rec.UID, rec.name(), rec.Wipe)
	}
	if e.Record == nil {
		e.Record = rec.Storage
	}
	found.entry = e
	if rec.Kind == v1alpha1.LeftOverRecord {
		if found.known && identityOfEntry(e) != rec.Identity {
			return found, fmt.Errorf("%w: the entry of the ledger is another one by now", errRefusedPurge)
		}
		return found, nil
	}
	x, ok := place.Backend.(volume.Examiner)
	if !ok {
		return found, fmt.Errorf("%w: volumes of mode %s cannot be examined", errRefusedPurge, place.Mode)
	}
	found.exam, err = x.Examine(ctx, rec.UID)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		// It is gone, or has the name of what was deleted: the backend knows by its record.
		return found, nil
	case err != nil:
		return found, fmt.Errorf("look at it: %w", err)
	case found.exam.Identity != rec.Identity:
		return found, fmt.Errorf("%w: it is another one by now: this is %q, named is %q", errRefusedPurge, found.exam.Identity, rec.Identity)
	case e.State == ledger.Deleting:
		return found, nil // that nobody has it was proven before
	}
	return found, p.proveUnused(ctx, place.Backend, e)
}

// describe says in words what is lost with a left-over.
func (p *Purger) describe(ctx context.Context, place PurgePlace, found provenLeftOver) string {
	e, x := found.entry, found.exam
	parts := []string{"volume " + e.Name}
	if x.Claim != "" {
		parts = append(parts, "of claim "+x.Claim)
	}
	if e.Record == nil {
		return strings.Join(append(parts, "an entry of the ledger in state "+string(e.State)), ", ")
	}
	parts = append(parts, fmt.Sprintf("%d MiB", e.Record.SizeBytes>>20), p.contents(ctx, place, found)) //nolint:mnd // MiB
	if !x.Made.IsZero() {
		parts = append(parts, "made "+x.Made.UTC().Format(time.RFC3339))
	}
	if !x.Changed.IsZero() {
		parts = append(parts, "its uppermost directory last changed "+x.Changed.UTC().Format(time.RFC3339))
	}
	if !found.known {
		parts = append(parts, "not in the node's ledger")
	}
	return strings.Join(append(parts, "wipe policy "+string(e.Wipe)), ", ")
}

// contents says what is on a volume.
func (p *Purger) contents(ctx context.Context, place PurgePlace, found provenLeftOver) string {
	e := found.entry
	switch {
	case place.Mode == volume.ModeHostpath:
		return "a directory"
	case e.Encryption != nil:
		return "encrypted"
	}
	location, err := place.Backend.Locate(ctx, e.UID, *e.Record)
	if err != nil {
		return "what is on it could not be read"
	}
	s, err := p.Filesystems.Inspect(ctx, location.Device)
	switch {
	case errors.Is(err, mount.ErrNoFilesystem):
		return "no ext4, xfs or btrfs, which does not say that nothing is on it"
	case err != nil:
		return "what is on it could not be read"
	}
	said := s.FSType
	if s.Label != "" {
		said += fmt.Sprintf(" %q", s.Label)
	}
	said += " (" + s.UUID + ")"
	if !s.Made.IsZero() {
		said += " made " + s.Made.UTC().Format(time.RFC3339)
	}
	if !s.Written.IsZero() {
		said += " and last mounted or unmounted " + s.Written.UTC().Format(time.RFC3339)
	}
	return said
}
