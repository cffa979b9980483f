// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// formatTimeout bounds one mkfs. The journal of a large ext4 is 1 GiB of zeroes.
	formatTimeout = 5 * time.Minute
	// tablesTimeout bounds one that writes all of ext4's inode tables, 1/64 of the disk.
	tablesTimeout = 12 * time.Hour
	// lockTimeout bounds the wait for the advisory lock of the disk, which udev holds
	// for some milliseconds while it looks.
	lockTimeout = 10 * time.Second
)

// Formatter makes filesystems. Calls for different devices may run at once.
type Formatter struct{ host Host }

// NewFormatter returns a Formatter of the host's devices.
func NewFormatter(host Host) *Formatter { return &Formatter{host: host} }

// FormatRequest is a wish for a filesystem.
type FormatRequest struct {
	// Device is the path of the block device on the host. The caller has just proven
	// that it is the right one.
	Device string
	// FSType is Ext4, XFS or Btrfs.
	FSType string
	// UUID the filesystem shall have, in lower case.
	UUID string
	// Label is optional, for people: at most 16 bytes in ext4, 12 in xfs, 255 in btrfs;
	// longer ones are cut.
	Label string
	// Options are the class's own, as CheckMkfsOptions allows them.
	Options []string

	// NeverFormatted is what the record says. When false Format refuses, unless the
	// filesystem asked for is there already.
	NeverFormatted bool
	// Begin is called once the device was proven blank and before the first byte is
	// written; it keeps durably that mkfs was begun. An error of it stops the format.
	// nil keeps nothing.
	Begin func(context.Context) error
	// Begun is true when the record says that Begin was called before for this
	// volume, and that the volume was handed to nobody since. What is on the device is
	// then the remains of a mkfs that was killed, unless it is a finished filesystem.
	Begun bool
}

// Format makes the filesystem, and returns when it was observed on the device.
// When the very filesystem, told by its UUID, is there already it does nothing;
// so a repeated call succeeds. It runs one program, mkfs; after a mkfs that was
// killed also blkid.
//
//   - volume.ErrNotFound: there is no such device. An absent device is never blank.
//   - volume.ErrNotBlank: there is content that this volume's mkfs did not leave.
//   - volume.ErrInUse: somebody holds the device.
//   - volume.ErrInvalid: unknown filesystem, bad UUID, or a device too small for it.
//   - volume.ErrToolMissing: the host has no mkfs for it.
//
// After all of these nothing was changed. Any other error leaves the outcome open;
// call again, with Begun as the record says.
func (f *Formatter) Format(ctx context.Context, req FormatRequest) error {
	command, err := mkfs(req)
	if err != nil {
		return fmt.Errorf("format %s: %w", req.Device, err)
	}
	if err := f.format(ctx, req, command); err != nil {
		return fmt.Errorf("format %s as %s: %w", req.Device, req.FSType, err)
	}
	return nil
}

func (f *Formatter) format(ctx context.Context, req FormatRequest, command hostexec.Command) error {
	unlock, err := f.lock(ctx, req.Device)
	if err != nil {
		return err
	}
	defer unlock()
	var found state
	err = f.host.InMountNamespace(ctx, func() (err error) {
		found, err = examine(req)
		return err
	})
	if err != nil || found == finished {
		return err
	}
	// The tool comes after the content, so that a disk with data on a host without
	// mkfs is reported as what it is, and before Begin, so that nothing was begun.
	if _, err := f.host.LookPath(ctx, command.Name); err != nil {
		return err
	}
	switch {
	case found == remains:
		err = f.eraseRemains(ctx, req)
	case !req.Begun && req.Begin != nil:
		err = req.Begin(ctx)
	}
	if err != nil {
		return fmt.Errorf("before mkfs: %w", err)
	}
	if _, err := f.host.Run(ctx, command); err != nil {
		return classifyMkfs(err)
	}
	return f.host.InMountNamespace(ctx, func() error { return observe(req) })
}

// lock keeps udev and discovery from looking at the disk while it is half written.
// It is advisory; what keeps others away is that mkfs opens the device exclusively.
func (f *Formatter) lock(ctx context.Context, device string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err = f.host.InMountNamespace(ctx, func() error {
		lock, err := block.LockContext(ctx, device)
		if err == nil {
			unlock = func() { _ = lock.Close() } // read-only: nothing to lose
		}
		return err
	})
	return unlock, err
}

// state is what a device holds, as far as a format may go on.
type state int

const (
	// blank at both ends: mkfs may run.
	blank state = iota + 1
	// remains of this volume's mkfs, which was killed.
	remains
	// finished: the filesystem that is asked for.
	finished
)

// examine decides whether mkfs may run. It holds the device exclusively while it
// looks, and only reads.
func examine(req FormatRequest) (found state, err error) {
	device, err := block.OpenExclusiveReadOnly(req.Device)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	size, err := block.SizeBytes(device)
	if err != nil {
		return 0, err
	}

	super, superErr := ReadSuperblock(device)
	ours := super.FSType == req.FSType && super.UUID == req.UUID
	switch {
	case errors.Is(superErr, ErrNoFilesystem):
	case superErr != nil && !errors.Is(superErr, ErrDamaged):
		return 0, superErr
	case ours && super.Complete && superErr == nil:
		return finished, nil
	case ours && req.NeverFormatted && req.Begun:
		return remains, nil
	default:
		return 0, fmt.Errorf("%w: it holds %s with UUID %s, and %s is wanted", volume.ErrNotBlank, super.FSType, super.UUID, req.UUID)
	}
	if !req.NeverFormatted {
		return 0, fmt.Errorf("%w: it was formatted before, and %s with UUID %s is not there now; it is never formatted again", volume.ErrIdentity, req.FSType, req.UUID)
	}
	offset, isBlank, err := block.BlankOnDisk(device, size)
	switch {
	case err != nil:
		return 0, err
	case isBlank:
		return blank, nil
	case req.Begun:
		return remains, nil
	}
	return 0, fmt.Errorf("%w: there is data at offset %d", volume.ErrNotBlank, offset)
}

// eraseRemains zeroes head and tail after a mkfs that was killed, so that the next
// one does not take its leavings for somebody's filesystem and refuse, as those of xfs
// and btrfs do.
//
// What the record calls remains is looked at once more, by libblkid, which knows
// more signatures than this package: mkfs leaves none but its own, so that any
// other is somebody's who came after us.
func (f *Formatter) eraseRemains(ctx context.Context, req FormatRequest) error {
	content, err := (block.Prober{Runner: f.host, HostRoot: f.host.Root()}).Probe(ctx, req.Device)
	if err != nil {
		return err
	}
	if content.Ambivalent || content.PartitionTable != "" || content.Found && (content.Type != req.FSType || content.UUID != req.UUID) {
		return fmt.Errorf("%w: it holds %s%s with UUID %q, which this volume's mkfs did not leave", volume.ErrNotBlank, content.Type, content.PartitionTable, content.UUID)
	}
	return f.host.InMountNamespace(ctx, func() (err error) {
		device, err := block.OpenExclusive(req.Device)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, device.Close()) }()
		size, err := block.SizeBytes(device)
		if err != nil {
			return err
		}
		return block.Wipe(ctx, device, size, volume.WipeSignatures, nil)
	})
}

// observe makes sure that what mkfs made is what was asked for.
func observe(req FormatRequest) (err error) {
	device, err := block.OpenReadOnly(req.Device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	found, err := ReadSuperblock(device)
	if err != nil {
		return fmt.Errorf("after mkfs: %w", err)
	}
	if found.FSType != req.FSType || found.UUID != req.UUID || !found.Complete {
		return fmt.Errorf("after mkfs: %w: found %s with UUID %s, complete: %t", volume.ErrIdentity, found.FSType, found.UUID, found.Complete)
	}
	return nil
}
