// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// MetadataSource is what copies of the metadata of one volume group are made from;
// *lvm.Backend is one.
type MetadataSource interface {
	Text(ctx context.Context) (lvm.GroupText, error)
	DumpThinPool(ctx context.Context, holding func() error, out io.Writer) (lvm.ThinDump, error)
	ReleaseThinPool(ctx context.Context) error
}

// MetadataOptions of a MetadataKeeper.
type MetadataOptions struct {
	// Client writes, and reads Pools from the informers' cache; Live reads ConfigMaps from
	// the API server.
	Client    client.Client
	Live      client.Reader
	Namespace string
	NodeName  string
	// Directory of the node's own copies, and how the host calls it.
	Directory, HostDirectory string
	// Recorder makes Events of pools.
	Recorder Announcer
	Log      *slog.Logger
}

// MetadataKeeper keeps copies of the metadata of this node's volume groups and thin pools
// outside of their disks: on the node, and in a ConfigMap that outlives the node. It works
// for each pool in a goroutine of its own, so that nothing waits for it.
type MetadataKeeper struct {
	MetadataOptions

	lifetime context.Context //nolint:containedctx // the copying outlives every single look at a pool

	mu    sync.Mutex
	pools map[string]*metadataWorker
}

// NewMetadataKeeper returns a keeper; its work ends with the lifetime.
func NewMetadataKeeper(lifetime context.Context, o MetadataOptions) *MetadataKeeper {
	return &MetadataKeeper{MetadataOptions: o, lifetime: lifetime, pools: map[string]*metadataWorker{}}
}

const (
	// textSettle is how long a change of a volume group waits for others, and textLeast how
	// long after the last copy the next one is made at the earliest.
	// textEvery is how often it is looked whether somebody else has changed the group.
	textSettle = 5 * time.Second
	textLeast  = time.Minute
	textEvery  = time.Hour
	// A dump reads all the pool's mappings. It follows volumes that came or went, and is made
	// anew each hour, for each first write to a chunk makes a mapping that it does not have.
	dumpSettle   = 30 * time.Second
	dumpPatience = 10 * time.Minute
	dumpLeast    = 10 * time.Minute
	dumpEvery    = time.Hour
	// dumpShare bounds what dumps cost: each one waits so many times as long as the one
	// before has taken.
	dumpShare = 20
	// publishLeast, for each publishUnit that is begun, is how long after a write to the API
	// the next one is made at the earliest: a large copy costs etcd more.
	publishLeast = time.Minute
	publishUnit  = 64 << 10
	// publishEvery is how often it is looked whether the ConfigMap is still there.
	publishEvery = time.Hour
	// metadataRetry is how long a copy that failed waits.
	metadataRetry = time.Minute
	// unavailableRetry is the same of a pool that cannot be used; a look may cost a process.
	unavailableRetry = 10 * time.Minute
)

// Seen tells of a look at a pool: what generation its volume group's metadata are of. It
// returns at once.
func (k *MetadataKeeper) Seen(poolSet, poolName string, source MetadataSource, groupUUID string, generation uint64, thin bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.pools[poolSet]
	if w != nil && w.groupUUID != groupUUID {
		w.cancel()
		w = nil
	}
	if w == nil {
		ctx, cancel := context.WithCancel(k.lifetime)
		w = &metadataWorker{
			keeper: k, poolSet: poolSet, poolName: poolName, groupUUID: groupUUID, thin: thin, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}, 1),
			files: metadataFiles{filepath.Join(k.Directory, groupUUID)},
			text:  pace{settle: textSettle, patience: textLeast, least: textLeast, every: textEvery},
			dump:  pace{settle: dumpSettle, patience: dumpPatience, least: dumpLeast, every: dumpEvery},
			api:   pace{least: publishLeast, every: publishEvery},
		}
		k.pools[poolSet] = w
		go w.run(ctx)
	}
	w.tell(source, generation)
}

// Stop ends the copying of a pool's metadata and waits for its end; the next Seen begins
// anew. What a dump holds is given back.
func (k *MetadataKeeper) Stop(poolSet string) {
	k.mu.Lock()
	w := k.pools[poolSet]
	delete(k.pools, poolSet)
	k.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
	}
}

// Forget removes the copies of a volume group that was removed, or let go, on purpose. It
// returns nil when there were none.
func (k *MetadataKeeper) Forget(ctx context.Context, poolSet, groupUUID string) error {
	k.Stop(poolSet)
	if groupUUID == "" {
		return nil
	}
	if !groupFile.MatchString(groupUUID) {
		return fmt.Errorf("forget the copies of the metadata of a pool: %w: %q is not the UUID of a volume group", volume.ErrInvalid, groupUUID)
	}
	if err := k.deleteObject(ctx, poolSet, groupUUID); err != nil {
		return err
	}
	if err := (metadataFiles{filepath.Join(k.Directory, groupUUID)}).remove(); err != nil {
		return fmt.Errorf("remove the copies of the metadata of volume group %s: %w", groupUUID, err)
	}
	return nil
}

// metadataWorker copies the metadata of one volume group.
type metadataWorker struct {
	keeper    *MetadataKeeper
	poolSet   string
	poolName  string
	groupUUID string
	thin      bool
	files     metadataFiles
	cancel    context.CancelFunc
	done      chan struct{}
	changed   chan struct{}

	mu         sync.Mutex
	source     MetadataSource
	generation uint64
	// kept says by kind whether the last copy was made.
	kept map[string]bool

	// Only run touches these.
	text, dump, api pace
	// published counts what is to be written to the API.
	published uint64
	told      map[string]string
}

func (w *metadataWorker) tell(source MetadataSource, generation uint64) {
	w.mu.Lock()
	w.source, w.generation = source, generation
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *metadataWorker) seen() (MetadataSource, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.source, w.generation
}

// run copies until the context ends.
func (w *metadataWorker) run(ctx context.Context) {
	defer close(w.done)
	w.told = map[string]string{}
	for retry := time.NewTimer(0); ; retry.Reset(metadataRetry) {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
		err := w.recall()
		if err == nil {
			break
		}
		w.isKept(keptGroupText, false)
		w.tellOnce("copies", fmt.Sprintf("the copies of the metadata in %s cannot be kept: %v", w.hostDirectory(), err))
	}
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	for {
		source, generation := w.seen()
		w.step(ctx, source, generation)
		wake.Reset(w.wait(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-wake.C:
		}
	}
}

// recall goes on where an earlier process has ended.
func (w *metadataWorker) recall() error {
	if err := w.files.open(); err != nil {
		return err
	}
	for _, of := range []struct {
		kind copyKind
		pace *pace
	}{{copyOfGroup, &w.text}, {copyOfThin, &w.dump}} {
		copies, err := w.files.latest(of.kind)
		if err != nil {
			return err
		}
		if len(copies) > 0 && !copies[0].at.After(time.Now()) {
			of.pace.done(copies[0].generation, copies[0].at)
		}
	}
	return nil
}

// step does what is due.
func (w *metadataWorker) step(ctx context.Context, source MetadataSource, generation uint64) {
	now := time.Now()
	w.text.see(generation, now)
	if w.thin {
		w.dump.see(generation, now)
	}
	if w.published == 0 && w.text.copied {
		w.toPublish(now) // maybe the API does not have what an earlier process has copied
	}
	if w.text.isDue(now) && ctx.Err() == nil {
		w.copyText(ctx, source)
	}
	if w.dump.isDue(time.Now()) && ctx.Err() == nil {
		w.copyDump(ctx, source)
	}
	if w.api.isDue(time.Now()) && ctx.Err() == nil {
		w.publish(ctx)
	}
}

// wait is how long nothing is due.
func (w *metadataWorker) wait(now time.Time) time.Duration {
	wait := time.Hour
	for _, p := range []*pace{&w.text, &w.dump, &w.api} {
		if when, ok := p.due(); ok {
			wait = min(wait, when.Sub(now))
		}
	}
	return max(wait, 0)
}

func (w *metadataWorker) toPublish(now time.Time) {
	w.published++
	w.api.see(w.published, now)
}

func (w *metadataWorker) copyText(ctx context.Context, source MetadataSource) {
	text, err := source.Text(ctx)
	if err == nil && w.text.copied && text.Seqno == w.text.kept {
		w.text.see(text.Seqno, time.Now())
		w.text.done(text.Seqno, time.Now())
		w.isKept(keptGroupText, true)
		return
	}
	if err == nil {
		err = w.files.add(metadataFile{kind: copyOfGroup, at: time.Now().Truncate(time.Second), generation: text.Seqno}, mostDumpBytes, func(out io.Writer) error {
			_, err := io.Copy(out, bytes.NewReader(text.Text))
			return err
		}, func(*metadataFile) {})
	}
	now := time.Now()
	switch {
	case err == nil:
		w.text.done(text.Seqno, now)
		w.toPublish(now)
		w.isKept(keptGroupText, true)
		w.well("group")
	case errors.Is(err, volume.ErrBusy):
		w.text.failed(now, textSettle)
	case ctx.Err() != nil:
	case errors.Is(err, volume.ErrPoolUnavailable):
		w.text.failed(now, unavailableRetry) // the pool itself says what is the matter
	default:
		w.text.failed(now, metadataRetry)
		w.isKept(keptGroupText, false)
		w.tellOnce("group", fmt.Sprintf("the metadata of the volume group cannot be copied: %v", err))
	}
}

// copyDump dumps the thin pool. What an agent that was killed has left held is given back
// before.
func (w *metadataWorker) copyDump(ctx context.Context, source MetadataSource) {
	began := time.Now()
	dump, err := w.dumpTo(ctx, source)
	now := time.Now()
	w.dump.least = max(dumpLeast, dumpShare*now.Sub(began))
	switch {
	case err == nil:
		w.dump.done(dump.Seqno, now)
		w.toPublish(now)
		w.isKept(keptThinDump, true)
		w.well("thin")
	case ctx.Err() != nil:
	case errors.Is(err, volume.ErrBusy):
		w.dump.failed(now, metadataRetry)
	case errors.Is(err, volume.ErrPoolUnavailable):
		w.dump.failed(now, unavailableRetry)
	default:
		w.dump.failed(now, dumpEvery)
		w.isKept(keptThinDump, false)
		w.tellOnce("thin", fmt.Sprintf("the thin pool's metadata cannot be dumped, which is tried again in an hour: %v", err))
	}
}

func (w *metadataWorker) dumpTo(ctx context.Context, source MetadataSource) (dump lvm.ThinDump, err error) {
	if err := w.giveBack(ctx, source); err != nil {
		return lvm.ThinDump{}, err
	}
	room, err := w.files.room()
	if err != nil {
		return lvm.ThinDump{}, err
	}
	err = w.files.add(metadataFile{kind: copyOfThin, at: time.Now().Truncate(time.Second)}, room, func(out io.Writer) error {
		dump, err = source.DumpThinPool(ctx, w.files.hold, out)
		return err
	}, func(f *metadataFile) { f.generation, f.transactionID = dump.Seqno, dump.TransactionID })
	if !errors.Is(err, lvm.ErrStillHeld) {
		err = errors.Join(err, w.files.letGo())
	}
	return dump, err
}

// giveBack releases a snapshot of the pool's metadata that this agent, or one before it, has
// left held.
func (w *metadataWorker) giveBack(ctx context.Context, source MetadataSource) error {
	held, err := w.files.held()
	if err != nil || !held {
		return err
	}
	if err := source.ReleaseThinPool(ctx); err != nil {
		return err
	}
	w.keeper.Log.Warn("Gave back a snapshot of a thin pool's metadata that an agent which was killed had left", "pool", w.poolName, "uuid", w.groupUUID)
	return w.files.letGo()
}

func (w *metadataWorker) publish(ctx context.Context) {
	what := w.published
	size, notes, err := w.writeObject(ctx)
	now := time.Now()
	w.api.least = publishLeast * time.Duration(1+size/publishUnit)
	switch {
	case err == nil:
		w.api.done(what, now)
		w.well("api")
	case ctx.Err() != nil:
		return
	default:
		w.api.failed(now, metadataRetry)
		w.isKept(keptInAPI, false)
		w.keeper.Log.Warn("The copies of a volume group's metadata are not in the API", "pool", w.poolName, "error", err)
		return
	}
	w.isKept(keptInAPI, notes == "")
	if notes == "" {
		w.well("size")
	} else {
		w.tellOnce("size", notes)
	}
}

// reasonMetadataNotKept of Events: a copy of a pool's metadata could not be made, or is on
// the node only.
const reasonMetadataNotKept = "MetadataNotKept"

// tellOnce says what is wrong with one kind of copies, until it is something else.
func (w *metadataWorker) tellOnce(about, message string) {
	if w.told[about] == message {
		return
	}
	w.told[about] = message
	w.keeper.Log.Warn("Copies of a pool's metadata", "pool", w.poolName, "uuid", w.groupUUID, "problem", message)
	pool := &v1alpha1.Pool{}
	if err := w.keeper.Client.Get(w.keeper.lifetime, client.ObjectKey{Name: w.poolName}, pool); err != nil {
		return // the log has it
	}
	w.keeper.Recorder.Eventf(pool, nil, corev1.EventTypeWarning, reasonMetadataNotKept, actionKeepPool, "%s", message)
}

func (w *metadataWorker) well(about string) { delete(w.told, about) }

func (w *metadataWorker) hostDirectory() string {
	return filepath.Join(w.keeper.HostDirectory, w.groupUUID)
}
