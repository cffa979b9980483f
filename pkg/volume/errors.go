// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
)

// The sentinels of the storage domain. Backends wrap them with %w; the gRPC
// handlers and the reconcilers translate them in one table each. An error that
// wraps none of them is an unknown failure: its outcome must be observed before
// anything else is done.
var (
	// ErrNoSpace: the pool or the node's disks cannot hold the volume. Nothing was
	// made.
	ErrNoSpace = errors.New("not enough space")
	// ErrNotFound: proven absent by a successful observation of the place where it
	// would be. Never returned because something could not be read.
	ErrNotFound = errors.New("not found")
	// ErrNotAdoptable: the disk or the directory of an adoption is not to be had as it is
	// now: it is not there, in use, kept from Berth, or not what was named. It was not
	// touched, and the volume does not hold it.
	ErrNotAdoptable = errors.New("it cannot be adopted")
	// ErrExists: something of that name is there and is not ours or not the same.
	ErrExists = errors.New("exists and differs")
	// ErrInUse: mounted, opened, held or exported by somebody.
	ErrInUse = errors.New("in use")
	// ErrNotTogether: the volumes are not where they could be copied at one instant. Nothing
	// was made.
	ErrNotTogether = errors.New("cannot be taken together")
	// ErrBusy: another operation on the same volume is at work; try again.
	ErrBusy = errors.New("operation in progress")
	// ErrIdentity: what is there is not what was recorded. Nothing was touched.
	ErrIdentity = errors.New("identity differs from the record")
	// ErrGone: what is open lies on a device that the kernel does not have any more, a disk that
	// was pulled out. What is read from it or written to it fails, and a disk that is put back is
	// another device, whatever its number.
	ErrGone = fmt.Errorf("%w: what it lies on is gone", ErrIdentity)
	// ErrNotBlank: there is content that we did not write. Nothing was touched.
	ErrNotBlank = errors.New("not blank")
	// ErrInvalid: the request asks for what this backend cannot do.
	ErrInvalid = errors.New("invalid request")
	// ErrToolMissing: a program that the host must provide is not installed.
	ErrToolMissing = errors.New("host program not installed")
	// ErrLost: a snapshot has lost what it held. Its volume has not.
	ErrLost = errors.New("content lost")
	// ErrKey: an encrypted volume needs a passphrase, and none was given, or none that opens
	// it. Nothing was changed.
	ErrKey = errors.New("no passphrase that opens the volume")
	// ErrPoolUnavailable: the pool exists and cannot be used now.
	ErrPoolUnavailable = errors.New("pool unavailable")
)
