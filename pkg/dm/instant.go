// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Instant is what is done while several devices stand still.
type Instant struct {
	// Devices, by device-mapper's UUIDs, in the order in which they are suspended: one
	// that lies on another before that.
	Devices []string `json:"devices"`
	// Messages that are sent while all of them are suspended, in this order.
	Messages []TargetMessage `json:"messages"`
	// Limit is how long the devices may stand still, whatever happens.
	Limit time.Duration `json:"limit"`
}

// TargetMessage is a text for the target at the beginning of a device.
type TargetMessage struct {
	Device string `json:"device"`
	Text   string `json:"text"`
	// MayBeGone: what the text is about need not be there any more, as when an earlier
	// attempt was cut short; the target answers ENODATA then.
	MayBeGone bool `json:"mayBeGone,omitempty"`
}

// ErrInstantOver: the devices went on before all was done.
var ErrInstantOver = errors.New("the devices went on before all was done")

// Switch suspends and resumes devices, and sends messages; Control is one.
type Switch interface {
	Suspend(uuid string) error
	Suspended(uuid string) (bool, error)
	Resume(uuid string) error
	Message(uuid, text string) error
}

// Take suspends the devices, sends the messages, and resumes the devices in reverse. It
// returns nil only when each of them stood still from before the first message until after
// the last one. In whatever way it returns, the devices go on: where one of them cannot be
// suspended, or the kernel does not come back within the limit, or the context ends, all
// are resumed, and what was done by then is not undone.
//
// ErrInstantOver: the limit was reached, or somebody else resumed a device. It may take
// longer than the limit where the kernel does not come back; the devices that it lets go do
// not wait for that.
func (i Instant) Take(ctx context.Context, devices Switch) error {
	if len(i.Messages) == 0 || i.Limit <= 0 {
		return fmt.Errorf("%w: an instant of %d messages and %s", volume.ErrInvalid, len(i.Messages), i.Limit)
	}
	ctx, cancel := context.WithTimeout(ctx, i.Limit)
	defer cancel()
	run := &instantRun{Instant: i, devices: devices}
	acted := make(chan error, 1)
	go func() { acted <- run.act() }()
	var err error
	select {
	case err = <-acted:
	case <-ctx.Done():
		// Before anything is resumed, so that what is sent from now on does not count.
		if run.end() {
			err = fmt.Errorf("%w: %w", ErrInstantOver, context.Cause(ctx))
		} else {
			err = <-acted // it has just come to its end
		}
	}
	// Each for itself: one whose suspension the kernel has not come to the end of keeps
	// those that wait for it. Those that come to stand still after this are resumed by act.
	return errors.Join(err, run.resume())
}

// instantRun is an Instant under way.
type instantRun struct {
	Instant

	devices Switch

	mu   sync.Mutex
	over bool
}

// end makes an instant count as over, and reports whether it was not before.
func (r *instantRun) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.over
	r.over = true
	return !was
}

func (r *instantRun) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// act does it all but the resuming. It may be left behind when the time is up: then it
// undoes the suspension that it comes back with, and does nothing more.
func (r *instantRun) act() error {
	for _, uuid := range r.Devices {
		err := r.devices.Suspend(uuid)
		if r.isOver() {
			return errors.Join(err, ErrInstantOver, r.devices.Resume(uuid))
		}
		if err != nil {
			return err
		}
	}
	for _, m := range r.Messages {
		if r.isOver() {
			return ErrInstantOver
		}
		if err := r.devices.Message(m.Device, m.Text); err != nil && (!m.MayBeGone || !errors.Is(err, unix.ENODATA)) {
			return err
		}
	}
	for _, uuid := range r.Devices {
		still, err := r.devices.Suspended(uuid)
		if err != nil {
			return err
		}
		if !still {
			return fmt.Errorf("%w: somebody resumed %s", ErrInstantOver, uuid)
		}
	}
	// From here on it may be resumed, and has been taken nevertheless.
	if !r.end() {
		return ErrInstantOver
	}
	return nil
}

// resume resumes all devices, each by itself, those that were suspended last first.
func (r *instantRun) resume() error {
	errs := make([]error, len(r.Devices))
	var wg sync.WaitGroup
	for i, uuid := range slices.Backward(r.Devices) {
		wg.Go(func() { errs[i] = r.devices.Resume(uuid) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
