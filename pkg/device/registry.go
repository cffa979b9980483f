// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"

	"github.com/berth-dev/berth/pkg/volume"
)

// Registry is the durable list of a node's disks and of who holds them.
//
// The life of a disk is
//
//	Unclaimed --Claim--> Claimed --Release--> Released --FinishWipe(clean)--> Unclaimed
//	                        \---Abandon (nothing was ever written)---------------^
//
// and, for a disk whose content is to be kept, also
//
//	Unclaimed, or Released with volume.WipeNone --Adopt--> Claimed
//
// and, from a volume that no object stands for to one that is to have its data,
//
//	Claimed --HandOver--> Claimed
//
// and every arrow is on stable storage before the method that draws it returns.
// A method that fails with an error that wraps no sentinel leaves open whether
// its arrow was drawn; the caller repeats it or asks Claims, ClaimedBy, Resolve
// or Released.
//
// Methods are safe for concurrent use, and every method sees what methods that
// returned before it was called have done, whatever cache lies below.
type Registry interface {
	// Candidates returns the disks that may be claimed now: Unclaimed, present,
	// blank when last probed, not reserved, kept by every filter, and like no other.
	// It may lag behind the kernel, never behind the claims: each disk is proven
	// again when it is taken. Their order means nothing.
	Candidates(ctx context.Context) ([]volume.Disk, error)

	// Claims returns every disk in state Claimed, whatever its owner's kind, whether
	// the kernel shows it now or not (Path is empty then). The list is complete or
	// there is an error (I4).
	Claims(ctx context.Context) ([]Claimed, error)

	// ClaimedBy returns the disk in state Claimed whose owner has this UID, and
	// whether there is one. A "no" is proven: it never comes from a cache that may
	// have missed a claim of an earlier process. An owner of several disks gets any
	// one of them.
	ClaimedBy(ctx context.Context, ownerUID string) (Claimed, bool, error)

	// Claim gives the disk to the owner and returns when that is durable. Repeated
	// for the same owner it returns the same.
	//
	// ErrBusy: another owner was first, or the disk is Released. ErrNotFound: the
	// registry has no disk of that name. ErrInvalid: the disk may not be claimed
	// (reserved, filtered, in conflict with another); nothing was changed.
	Claim(ctx context.Context, diskName string, owner Owner) (Claimed, error)

	// Adopt is Claim for a disk that is not blank: the caller has proven that it holds
	// what an operator has named, and that nobody else has it. Everything but the
	// content is judged as by Claim, and a disk of weak identity is refused.
	//
	// ErrBusy: another owner holds it, or it waits for a wipe. ErrNotFound: the
	// registry has no disk of that name. ErrInvalid: the disk may not be had
	// (reserved, filtered, partitioned, failing, in conflict with another); nothing was
	// changed.
	Adopt(ctx context.Context, diskName string, owner Owner) (Claimed, error)

	// HandOver gives the disk that one volume holds to another one, in one write: at each
	// moment one of the two holds it. The caller has proven that nobody has the disk and that
	// nothing leads to the volume that held it. Repeated for the same owner it returns the same.
	//
	// ErrBusy: it is held by neither, or it is Released. ErrNotFound: the registry has no disk of
	// that name. Nothing was changed.
	HandOver(ctx context.Context, diskName, fromUID string, owner Owner) (Claimed, error)

	// Abandon takes a claim back under which nothing was ever written, and makes the
	// disk Unclaimed without a wipe. It exists so that a claim made by mistake on a
	// disk with foreign data never leads to a wipe. It returns nil when the owner
	// does not hold the disk. A disk that is Released is left so.
	Abandon(ctx context.Context, diskName, ownerUID string) error

	// Resolve returns where the disk is now, who holds it and, while it is Released,
	// the token of its wipe. It reads the identity and the size from the kernel, and
	// the claim from where it is durable: nothing of it is remembered.
	//
	// ErrNotFound: a complete look at the kernel's disks has proven that it is not
	// there (pulled, failed), or the registry has no disk of that name. ErrIdentity:
	// what is there under that name is another disk, or a second disk shows the same
	// identity (I9). Anything that could not be read is another error.
	Resolve(ctx context.Context, diskName string) (Claimed, error)

	// Release ends the claim of the owner, makes the disk Released and mints the
	// token that permits exactly one wipe. Repeated, it returns the same token as
	// long as that wipe is not finished. It works for a disk that is not present, so
	// that a volume on a dead disk can be deleted; the wipe waits until it returns.
	// What the disk holds is recorded with the token, as far as that is known: the wipe
	// erases that and nothing else. ErrIdentity: the node knows what the owner has on
	// its disk, and something else is there; nothing was changed.
	//
	// With volume.WipeNone the disk stays Released until an operator has cleaned it,
	// and the token is empty. ErrNotFound: the owner does not hold the disk and has
	// not released it.
	Release(ctx context.Context, diskName, ownerUID string, policy volume.WipePolicy) (token string, err error)

	// FinishWipe reports how the wipe under this token ended. Clean consumes the
	// token and makes the disk Unclaimed. Not clean leaves the disk Released and
	// shows the message, a sentence for the operator; the token stays valid for
	// another attempt at the same wipe, and the same message again writes nothing.
	//
	// ErrNotFound: no wipe with this token is open on the disk. Nothing was changed.
	FinishWipe(ctx context.Context, diskName, token string, clean bool, message string) error

	// Released returns every disk in state Released, present or not, complete or an
	// error.
	Released(ctx context.Context) ([]ReleasedDisk, error)
}

// The kinds of owner.
const (
	// OwnerVolume is a volume that is a whole disk.
	OwnerVolume = "LocalVolume"
	// OwnerPool is a pool that a disk is a part of.
	OwnerPool = "Pool"
)

// Owner is who holds a disk.
type Owner struct {
	// UID tells it from an object that was made anew under an old name.
	UID string
	// Name is for people.
	Name string
	// Kind is OwnerVolume or OwnerPool.
	Kind string
}

// State of a disk's claim.
type State string

// The states of a claim.
const (
	// StateUnclaimed: nothing of ours holds the disk.
	StateUnclaimed State = "Unclaimed"
	// StateClaimed: its owner holds it.
	StateClaimed State = "Claimed"
	// StateReleased: its owner is gone and it is not clean yet. Nobody gets it.
	StateReleased State = "Released"
)

// Claimed is a disk and who holds it.
type Claimed struct {
	// Name under which the registry knows the disk.
	Name string
	// Path of the kernel's device node now (I11); empty when it is not present.
	Path string
	// IdentityScheme and IdentityValue are what the disk says of itself: from
	// Resolve as read now, otherwise as registered.
	IdentityScheme string
	IdentityValue  string
	// SizeBytes of the disk: from Resolve as read now, otherwise as last seen.
	SizeBytes int64
	// Controller names the adapter that the disk is behind; empty when it is not known,
	// and from Resolve.
	Controller string
	// State of the claim.
	State State
	// Owner who holds the disk or, in state Released, has held it. Zero when
	// Unclaimed.
	Owner Owner
	// WipeToken of the open wipe, only in state Released and from Resolve.
	WipeToken string
	// Content that the disk held when it was released, with the token; nil when that was
	// not known.
	Content *Content
}

// ReleasedDisk is a disk that waits for its wipe.
type ReleasedDisk struct {
	// Name under which the registry knows the disk.
	Name string
	// IdentityScheme and IdentityValue as registered.
	IdentityScheme string
	IdentityValue  string
	// SizeBytes of the disk when it was released. A disk of another size is not
	// wiped.
	SizeBytes int64
	// Token that permits the wipe; empty with volume.WipeNone.
	Token string
	// Policy of the volume that was deleted.
	Policy volume.WipePolicy
	// Owner who has released it.
	Owner Owner
}
