// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// changesOfMove is how often pvmove changes the metadata to begin and to end: it names its
	// mirror, gives the volumes their extents, and removes the mirror (tools/pvmove.c and
	// tools/pvmove_poll.c).
	changesOfMove = 3
	// neverLooks is an interval in seconds after which pvmove looks at what it has begun for
	// the first time: nobody waits so long for it.
	neverLooks = 365 * 24 * 3600
	// moveInterval is how often it is asked whether pvmove has begun.
	moveInterval = 100 * time.Millisecond
)

// beginMove begins to move extents. lvm's command would stay until they are copied, which
// the kernel does: it is ended as soon as they are, while nothing else changes the group, and
// the queue goes on.
func (q *queue) beginMove(ctx context.Context, op *operation) {
	where := fmt.Sprintf("%s %s", op.verb, q.groupName)
	before, err := q.current(ctx)
	if err == nil {
		err = op.allowed(before)
	}
	if err == nil {
		err = op.check(before, nil)
	}
	switch under := err == nil && before.move() != nil; {
	case err != nil:
	case under && len(op.runs) > 0:
		err = fmt.Errorf("%w: other extents are being moved", volume.ErrBusy)
	case !under && len(op.runs) == 0:
		op.answer(before, nil) // what was to be gone on with has come to its end
		return
	}
	var t terms
	if err == nil {
		t, err = q.terms(ctx, before)
	}
	if err == nil {
		err = q.resume(ctx, before)
	}
	if err == nil {
		err = q.keepBefore(before, changesOfMove)
	}
	if err != nil {
		op.answer(nil, fmt.Errorf("%s: not started: %w", where, err))
		return
	}
	q.unflushed, q.known = true, nil
	stderr, actErr := q.startMove(ctx, &plan{group: before, terms: t}, op)
	if actErr != nil {
		q.mayHang = true
	}
	after, err := q.observe(ctx)
	if err != nil {
		op.answer(nil, fmt.Errorf("%s: the outcome is not known: %w", where, errors.Join(err, actErr)))
		return
	}
	_ = q.resume(ctx, after) // what is wrong is told before something is changed
	if after.move() == nil {
		op.answer(nil, fmt.Errorf("%s: %w", where, explain(stderr, actErr)))
		return
	}
	if err = q.client.makeDurable(after); err == nil {
		q.unflushed = false
		err = q.keep(after, false)
	}
	if err != nil { // it stands all the same, and a later call finds it
		op.answer(nil, fmt.Errorf("%s: %w", where, err))
		return
	}
	op.answer(after, nil)
}

// startMove runs pvmove until it has begun. The error is nil when it was ended then.
func (q *queue) startMove(ctx context.Context, p *plan, op *operation) (stderr []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, baseTimeout)
	defer cancel()
	command, err := moveCommand(q.session(p.settings()), p.group, op)
	if err != nil {
		return nil, err
	}
	type ended struct {
		result hostexec.Result
		err    error
	}
	running := make(chan ended, 1)
	go func() {
		result, err := q.client.runner.Run(ctx, command)
		running <- ended{result, err}
	}()
	for tick := time.Tick(moveInterval); ; {
		select {
		case e := <-running:
			// It ends by itself when there is nothing to move, or it cannot.
			return e.result.Stderr, e.err
		case <-tick:
		}
		begun := false
		err := q.nodes.WhileStill(ctx, q.groupName, func() error {
			if !q.hasBegun(ctx, p.group) {
				return nil
			}
			begun = true
			cancel()
			<-running
			return nil
		})
		if begun {
			return nil, nil
		}
		if err != nil && !errors.Is(err, volume.ErrBusy) && ctx.Err() == nil {
			cancel()
			e := <-running
			return e.result.Stderr, errors.Join(err, e.err)
		}
	}
}

// hasBegun reports whether the group was changed, or what was begun earlier is active again.
// lvm's lock is held, so it is not about to do more.
func (q *queue) hasBegun(ctx context.Context, before *Group) bool {
	if m := before.move(); m != nil {
		_, active, err := q.nodes.Moving(ctx, before.Name, before.UUID, m.name)
		return err == nil && active
	}
	for _, pv := range before.PVs {
		if uuid, seqno, ok, err := q.seqno(pv.Path); err == nil && ok && uuid == before.UUID && seqno > before.Seqno {
			return true
		}
	}
	return false
}

// moveCommand moves all or nothing (--atomic), so that what is moved is copied at once, and
// whether it is all there can be asked once.
func moveCommand(s session, g *Group, op *operation) (hostexec.Command, error) {
	if len(s.devices) == 0 {
		return hostexec.Command{}, errAllMoves
	}
	from := g.device(op.pv).Path
	if err := validatePaths(append([]string{from}, op.devices...)); err != nil {
		return hostexec.Command{}, err
	}
	words := []string{pvmove, "--yes", "--atomic", "--interval", "+" + strconv.Itoa(neverLooks)}
	words = append(words, "--config", configFor(words, s))
	if op.volume != "" {
		// Else lvm keeps away from each disk that has a leg of any redundant volume of which
		// another leg is on the disk that is emptied, whatever is moved (tools/pvmove.c,
		// _set_up_pvmove_lv): two of them are enough to leave no disk.
		words = append(words, "--name", op.volume)
	}
	for _, r := range op.runs {
		from += fmt.Sprintf(":%d-%d", r.start, r.start+r.extents-1)
	}
	words = append(append(words, from), op.devices...)
	return hostexec.Command{Name: "lvm", Args: words, Env: []string{"LVM_SUPPRESS_FD_WARNINGS=1"}, Timeout: 2 * baseTimeout}, nil
}
