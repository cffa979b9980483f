// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// Reasons of a Failure that no agent gives, beside the Ready reasons of the API.
const (
	// ReasonNodeGone: the Node object of a volume that was never ready is gone.
	ReasonNodeGone = "NodeGone"
)

// ErrConflict means that the LocalVolume exists and is not the one asked for.
var ErrConflict = fmt.Errorf("the volume of that name is another one: %w", volume.ErrExists)

// Refusal is an answer to a request that cannot be served as it stands: the
// class or the claim must change first. It unwraps to volume.ErrInvalid.
//
// It carries the gRPC status InvalidArgument, which sig-storage-lib takes for
// "infeasible": it then waits five minutes, or for a class made anew, instead of
// repeating the event (isInfeasibleError in its controller.go).
type Refusal struct{ message string }

func refuse(format string, args ...any) error {
	return &Refusal{message: fmt.Sprintf(format, args...)}
}

func (e *Refusal) Error() string { return e.message }

// Unwrap makes the refusal a volume.ErrInvalid.
func (e *Refusal) Unwrap() error { return volume.ErrInvalid }

// GRPCStatus is what status.FromError looks for.
func (e *Refusal) GRPCStatus() *status.Status {
	return status.New(codes.InvalidArgument, e.message)
}

// Failure is a node's final answer: the volume was not made there (or not grown)
// and nothing of the attempt is left. It unwraps to the sentinel of package volume
// that fits the reason.
type Failure struct {
	// Volume is the name of the LocalVolume.
	Volume string
	// Node that answered.
	Node string
	// Reason is the reason of the condition, or one of this package.
	Reason string
	// Message is the agent's own words.
	Message string
}

func (e *Failure) Error() string {
	return fmt.Sprintf("node %s: %s: %s", e.Node, e.Reason, e.Message)
}

// Unwrap returns the sentinel for the reason.
func (e *Failure) Unwrap() error {
	switch e.Reason {
	case berth.ReasonNoSpace:
		return volume.ErrNoSpace
	case berth.ReasonToolMissing:
		return volume.ErrToolMissing
	case berth.ReasonInvalid, berth.ReasonNotEnforceable:
		return volume.ErrInvalid
	case berth.ReasonHasSnapshots:
		return volume.ErrInUse
	case berth.ReasonMissing:
		return volume.ErrNotFound
	case berth.ReasonIdentityMismatch:
		return volume.ErrIdentity
	default:
		return volume.ErrPoolUnavailable
	}
}

// Pending means that the outcome is not known yet: the LocalVolume stands, or may
// stand, and its agent goes on. The caller asks again.
type Pending struct {
	// Volume is the name of the LocalVolume.
	Volume string
	// What is still going on and what to look at.
	What string
	// Cause ended the wait.
	Cause error
}

func (e *Pending) Error() string {
	return fmt.Sprintf("LocalVolume %q: %s (%v)", e.Volume, e.What, e.Cause)
}

// Unwrap returns what ended the wait.
func (e *Pending) Unwrap() error { return e.Cause }

// conflict is a LocalVolume that differs from the request, and how.
type conflict struct {
	existing *berth.LocalVolume
	how      string
	// foreign is true when it was made for another claim.
	foreign bool
}

func (e *conflict) Error() string {
	return fmt.Sprintf("LocalVolume %q exists and differs: %s", e.existing.Name, e.how)
}

func (e *conflict) Unwrap() error { return ErrConflict }

func asFailure(err error) (*Failure, bool) {
	var f *Failure
	ok := errors.As(err, &f)
	return f, ok
}
