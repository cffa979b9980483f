// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/berth-dev/berth/pkg/volume"
)

// queue does everything that changes one volume group, one process after the
// other, and knows how the group looks. What waits while a process runs goes into
// the next one together: a burst is batched without anybody waiting for company.
type queue struct {
	client    *Client
	groupName string
	groupUUID string
	devices   func() []string
	reserve   func(totalBytes int64) int64
	layout    Layout
	// thin is nil where volumes are thick.
	thin func() ThinPolicy
	// pool is somebody else's thin pool, nil for one of ours.
	pool *ThinPoolID
	// snapshots is how much room thick snapshots get.
	snapshots func() SnapshotPolicy
	nodes     Nodes
	seqno     SeqnoReader
	// instants takes group snapshots.
	instants Instants
	// journal is nil where no way back is kept.
	journal    Journal
	metadata   Metadata
	rolledBack func(devicePath string, seqno uint64)
	resumed    func(devices int)

	// segmented is set when it matters on which device which volume lies.
	segmented atomic.Bool

	mu      sync.Mutex
	pending []*operation
	working bool

	// unflushed is true while a change of the group may be lost with the power: from the
	// start, for nobody knows what an earlier process did. Only the worker touches it.
	unflushed bool
	// mayHang is true while devices may be suspended that nobody will resume: from the
	// start, and after a process that did not come to its end. Only the worker touches it.
	mayHang bool
	// known is how the group looked last, nil when that is not known, and text its metadata
	// then, nil when they were not read. Only the worker touches them.
	known *Group
	text  *sections
	// compare is called by tests with each group that was followed.
	compare func(*Group)
	// kept is what the journal holds, nil when that is not known. looked is true once
	// the devices were searched for a change that was cut short, concluded while the
	// journal says that no batch of changes is under way. Only the worker touches them.
	kept              *Generation
	looked, concluded bool
	// keeping guards what the journal holds from being read, changed and written by two.
	keeping sync.Mutex
	// behind is what the journal says of images; all that know the group see it change.
	behind atomic.Pointer[[]string]
}

// mostPerProcess bounds a batch, and with it how long one process may take.
const mostPerProcess = 64

// do queues an operation and waits for its outcome. When the context ends first,
// an operation that no process has been started for is taken back; another goes
// on to its end, and the next call for the same volume will see what it did.
func (q *queue) do(ctx context.Context, op *operation) (*Group, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s %s/%s: not started: %w", op.verb, q.groupName, op.name, context.Cause(ctx))
	}
	q.add(op) //nolint:contextcheck // a batch serves many callers and outlives each of them; every process has its own deadline
	return q.wait(ctx, op)
}

// doAll is do for several operations, which share a process, as far as they can. It returns
// the errors of all.
func (q *queue) doAll(ctx context.Context, ops []*operation) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%d operations on %s: not started: %w", len(ops), q.groupName, context.Cause(ctx))
	}
	q.add(ops...) //nolint:contextcheck // as in do
	errs := make([]error, len(ops))
	for i, op := range ops {
		_, errs[i] = q.wait(ctx, op)
	}
	return errors.Join(errs...)
}

func (q *queue) add(ops ...*operation) {
	if len(ops) == 0 {
		return
	}
	for _, op := range ops {
		op.done = make(chan outcome, 1)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending = append(q.pending, ops...)
	if !q.working {
		q.working = true
		go q.work()
	}
}

func (q *queue) wait(ctx context.Context, op *operation) (*Group, error) {
	select {
	case out := <-op.done:
		return out.group, out.err
	case <-ctx.Done():
		q.mu.Lock()
		q.pending = slices.DeleteFunc(q.pending, func(o *operation) bool { return o == op })
		q.mu.Unlock()
		return nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, context.Cause(ctx))
	}
}

// work runs until nothing waits.
func (q *queue) work() {
	for {
		q.mu.Lock()
		batch := q.pending[:min(len(q.pending), mostPerProcess)]
		q.pending = q.pending[len(batch):]
		if len(batch) == 0 {
			q.pending = nil
			q.working = false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		for batch = slices.Clone(batch); len(batch) > 0; {
			batch = q.process(context.Background(), batch)
		}
	}
}

// process decides, acts in at most one process, observes, and answers. It returns
// the operations that need another process.
func (q *queue) process(ctx context.Context, batch []*operation) []*operation {
	switch i := slices.IndexFunc(batch, func(op *operation) bool { return op.verb == verbInstant || op.verb == verbMove }); {
	case i == 0:
		if batch[0].verb == verbMove {
			q.beginMove(ctx, batch[0])
		} else {
			q.takeInstant(ctx, batch[0])
		}
		return batch[1:]
	case i > 0:
		return append(q.process(ctx, batch[:i]), batch[i:]...)
	}
	before, err := q.current(ctx)
	if err != nil {
		for _, op := range batch {
			op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, err))
		}
		return nil
	}
	if q.mayHang && !q.layout.Redundant() {
		_ = q.resume(ctx, before) // what is wrong is told before something is changed
	}
	t, err := q.terms(ctx, before)
	if err != nil {
		for _, op := range batch {
			op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, err))
		}
		return nil
	}
	p := makePlan(before, t, batch)
	for op, err := range p.refused {
		op.answer(nil, err)
	}
	after, stderr, actErr := before, []byte(nil), error(nil)
	if len(p.commands) > 0 {
		err := q.resume(ctx, before)
		if err == nil {
			err = q.keepBefore(before, p.changes())
		}
		if err != nil {
			for _, op := range slices.Concat(p.acting, p.watching) {
				op.answer(nil, fmt.Errorf("%s %s/%s: not started: %w", op.verb, q.groupName, op.name, err))
			}
			return p.later
		}
		q.unflushed = true // also when nobody will know what they did
		if text := q.sectionsBefore(p, before); text != nil {
			after, stderr, actErr = q.actAndFollow(ctx, p, text)
		} else {
			after, stderr, actErr = q.act(ctx, p.settings(), p.commands)
		}
	}
	if after == nil {
		for _, op := range append(p.acting, p.watching...) {
			op.answer(nil, fmt.Errorf("%s %s/%s: the outcome is not known: %w", op.verb, q.groupName, op.name, actErr))
		}
		return p.later
	}
	notDurable := q.makeDurable(p, after)
	for _, op := range p.watching {
		if notDurable != nil && op.changes() {
			op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, notDurable))
			continue
		}
		op.answer(after, nil)
	}
	var again []*operation
	for _, op := range p.acting {
		op.tried++
		op.said = said(stderr)
		switch done := op.met(after); {
		case notDurable != nil && op.changes():
			op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, notDurable))
		case done, actErr == nil && !op.inMetadata():
			op.answer(after, nil)
		case actErr == nil && len(p.acting) > 1 && op.tried == 1:
			// Which of the commands lvm complained of is not known: try it alone.
			again = append(again, op)
		default:
			q.known, q.text = nil, nil // it does not show what was asked for, whoever is wrong: the next one looks anew
			op.answer(nil, fmt.Errorf("%s %s/%s: %w", op.verb, q.groupName, op.name, explain(stderr, actErr)))
		}
	}
	for _, op := range again {
		p.later = append(q.process(ctx, []*operation{op}), p.later...)
	}
	return p.later
}

// makeDurable flushes the group's devices if somebody is about to be told that it was
// changed. The change itself stands also where that fails: a later call finds it.
func (q *queue) makeDurable(p *plan, g *Group) error {
	if !q.unflushed || !slices.ContainsFunc(slices.Concat(p.watching, p.acting), (*operation).changes) {
		return nil
	}
	if err := q.client.makeDurable(g); err != nil {
		return err
	}
	q.unflushed = false
	return q.keep(g, false)
}

// act runs the commands. It returns how the group looks afterwards, and the error
// that kept the process from telling so itself. The group is nil when that could
// not be found out.
func (q *queue) act(ctx context.Context, settings []string, commands [][]string) (*Group, []byte, error) {
	q.known, q.text = nil, nil
	report, stderr, actErr := q.client.shell(ctx, q.session(settings), commands)
	if actErr == nil {
		g, err := q.pick(report)
		if err != nil {
			return nil, stderr, err
		}
		q.known = g
		if q.segmented.Load() && !g.withSegments {
			// What was done is known all the same.
			if whole, err := q.observe(ctx); err == nil {
				g = whole
			}
		}
		return g, stderr, nil
	}
	return q.afterwards(ctx, stderr, actErr)
}

// afterwards finds out what a process has done that did not come to its end.
func (q *queue) afterwards(ctx context.Context, stderr []byte, actErr error) (*Group, []byte, error) {
	if errors.Is(actErr, volume.ErrToolMissing) || errors.Is(actErr, volume.ErrInvalid) {
		// Nothing was started.
		return nil, stderr, actErr
	}
	q.mayHang = true // and is resumed with the next look
	g, err := q.observe(ctx)
	if err != nil {
		return nil, stderr, errors.Join(explain(stderr, actErr), err)
	}
	_ = q.resume(ctx, g)
	return g, stderr, actErr
}

// current returns how the group looks now: as it was seen last, if the metadata
// on its devices is still of that generation.
func (q *queue) current(ctx context.Context) (*Group, error) {
	if q.known != nil && (q.known.withSegments || !q.segmented.Load()) && unchanged(q.known, q.seqno) {
		return q.known, nil
	}
	return q.observe(ctx)
}

// looks is how often a group is looked at that somebody else changes at the same time:
// lvm takes its lock for each report anew, so that two may show different generations.
const looks = 3

// observe looks at the group. A change of its metadata that was cut short is undone
// before: at the first look, for that comes after a loss of power, and when the group
// cannot be seen.
func (q *queue) observe(ctx context.Context) (*Group, error) {
	q.known, q.text = nil, nil
	if devices := q.devices(); devices != nil && len(devices) == 0 {
		// What lvm would see elsewhere is not the group.
		return nil, fmt.Errorf("%w: none of the devices of volume group %s is there", volume.ErrPoolUnavailable, q.groupName)
	}
	if !q.looked {
		q.looked = len(q.devices()) > 0
		_, _ = q.rollBack() // what is wrong is told when the group cannot be seen
	}
	g, err := q.look(ctx)
	if errors.Is(err, errReport) || errors.Is(err, volume.ErrPoolUnavailable) {
		rolled, rollErr := q.rollBack()
		if rollErr != nil {
			return nil, fmt.Errorf("%w; %w", err, rollErr)
		}
		if rolled {
			g, err = q.look(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	q.known = g
	q.conclude(g)
	return g, nil
}

func (q *queue) session(settings []string) session {
	return session{
		devices: q.devices(), settings: settings, legs: q.layout.Redundant(), thin: q.thin != nil, foreignPool: q.pool != nil, segments: q.segmented.Load(),
	}
}

func (q *queue) look(ctx context.Context) (*Group, error) {
	report, stderr, err := q.client.shell(ctx, q.session(nil), nil)
	for range looks - 1 {
		if !errors.Is(err, errReport) {
			break
		}
		report, stderr, err = q.client.shell(ctx, q.session(nil), nil)
	}
	if err != nil {
		return nil, explain(stderr, err)
	}
	return q.pick(report)
}

// pick finds the group by its UUID. One that is not among the devices shown is
// unavailable, not absent; one of the same name is not ours.
func (q *queue) pick(report *Report) (*Group, error) {
	if g := report.Group(q.groupUUID); g != nil {
		g.adopted = q.pool
		return g, q.isLatest(g)
	}
	where := "the devices that the host shows to lvm"
	if devices := q.devices(); len(devices) > 0 {
		where = strings.Join(devices, ", ")
	}
	for _, g := range report.Groups {
		if g.Name == q.groupName {
			return nil, fmt.Errorf("%w: %w: a volume group %s with UUID %s is on %s, the pool's has UUID %s",
				volume.ErrPoolUnavailable, volume.ErrIdentity, g.Name, g.UUID, where, q.groupUUID)
		}
	}
	lost := ""
	if len(report.Lost) > 0 {
		lost = fmt.Sprintf("; lvm can read no metadata on %s, which says it is in use", report.Lost[0].Path)
	}
	return nil, fmt.Errorf("%w: volume group %s (%s) was not found on %s%s", volume.ErrPoolUnavailable, q.groupName, q.groupUUID, where, lost)
}

// isLatest returns volume.ErrPoolUnavailable for a group that looks as it once did. A disk
// that was lost, and was taken out of the group meanwhile, holds its metadata of then: where
// the others are not to be seen, lvm takes it for the group, with volumes as they were.
func (q *queue) isLatest(g *Group) error {
	if q.journal == nil {
		return nil
	}
	q.keeping.Lock()
	defer q.keeping.Unlock()
	kept, found, err := q.journal.Kept(q.groupUUID)
	if err != nil {
		return fmt.Errorf("volume group %s: %w: which generation of its metadata is the latest is not known: %w", g.Name, volume.ErrPoolUnavailable, err)
	}
	q.behind.Store(&kept.Behind)
	g.behind = &q.behind
	if found && g.Seqno < kept.Seqno {
		return fmt.Errorf("volume group %s (%s): %w: generation %d of its metadata is there, and %d was the latest, so that one of its disks that was lost earlier is there, and the others are not: attach those, or, if an older generation was restored on purpose, see docs/limitations.md",
			g.Name, g.UUID, volume.ErrPoolUnavailable, g.Seqno, kept.Seqno)
	}
	return nil
}

// terms are what decides now over what the group has room for.
func (q *queue) terms(ctx context.Context, g *Group) (terms, error) {
	t := terms{reserveBytes: max(0, q.reserve(g.Extents*g.ExtentBytes)), layout: q.layout, snapshots: q.snapshots()}
	if err := t.snapshots.Check(); err != nil {
		return terms{}, err
	}
	if q.thin == nil {
		return t, nil
	}
	t.thin = &thinTerms{ThinPolicy: q.thin(), layout: q.layout, reserve: g.extentsFor(t.reserveBytes)}
	if err := t.thin.Check(); err != nil {
		return terms{}, err
	}
	pool, err := g.thinPool()
	if q.pool != nil {
		// Where it cannot be used, what lies in it is used and deleted as ever.
		t.thin.unusable, err = err, nil
	}
	if pool == nil {
		return t, err
	}
	if q.pool != nil {
		t.reserveBytes = max(0, q.reserve(pool.SizeBytes))
		t.thin.reserve = g.extentsFor(t.reserveBytes)
	}
	usage, active, err := q.nodes.ThinPool(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: pool.Name, UUID: pool.UUID})
	if err != nil {
		return terms{}, fmt.Errorf("look at thin pool %s/%s: %w", g.Name, pool.Name, err)
	}
	if active {
		t.thin.usage = &usage
	} else if q.pool != nil {
		t.thin.unusable = g.inactivePool(pool)
	}
	return t, nil
}

// changes reports whether the operation changes the metadata.
func (op *operation) changes() bool {
	return op.verb != verbObserve && op.inMetadata() || op.verb == verbSplit
}

// inMetadata reports whether the effect of the operation shows in the metadata.
func (op *operation) inMetadata() bool {
	return op.verb != verbActivate && op.verb != verbRefresh && op.verb != verbSplit
}

func (op *operation) answer(g *Group, err error) {
	op.done <- outcome{group: g, err: err}
}
