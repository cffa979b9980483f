// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package devicetest

import (
	"context"
	"errors"
	"sync"

	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

var errKilled = errors.New("the process was killed here")

// killer counts steps and lets nothing through after the last.
type killer struct {
	mu     sync.Mutex
	left   int // steps until the crash; negative for none
	killed bool
	notify func()
}

func (k *killer) arm(n int, notify func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left, k.killed, k.notify = n, false, notify
	if n < 0 {
		k.left = -1
	}
}

func (k *killer) dead() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed
}

// step returns an error when the process dies here or is dead already.
func (k *killer) step() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.killed:
		return errKilled
	case k.notify == nil:
		return nil
	case k.left == 0:
		k.killed = true
		k.notify()
		return errKilled
	}
	k.left--
	return nil
}

// mortalOpener opens disks for a process that may be killed: before, in the
// middle of and after a wipe.
type mortalOpener struct {
	device.Opener
	kill *killer
}

func (o mortalOpener) Open(ctx context.Context, path string) (device.OpenDisk, error) {
	if o.kill.dead() {
		return nil, errKilled
	}
	disk, err := o.Opener.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return mortalDisk{disk, o.kill}, nil
}

type mortalDisk struct {
	device.OpenDisk
	kill *killer
}

func (d mortalDisk) Wipe(ctx context.Context, sizeBytes int64, policy volume.WipePolicy, progress func(int64)) error {
	if err := d.kill.step(); err != nil {
		return err
	}
	// Half a wipe: the edges only, so that the disk looks blank though it is not.
	if err := d.OpenDisk.Wipe(ctx, sizeBytes, volume.WipeSignatures, nil); err != nil {
		return err
	}
	if err := d.kill.step(); err != nil {
		return err
	}
	if err := d.OpenDisk.Wipe(ctx, sizeBytes, policy, progress); err != nil {
		return err
	}
	return d.kill.step()
}
