// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// codeTable is the one place where errors become gRPC codes. The first that an
// error wraps decides: what is known of the volume comes before what is known of
// the clock, for a command that ran out of time may have said something else too.
var codeTable = []struct {
	err  error
	code codes.Code
}{
	{volume.ErrBusy, codes.Aborted},
	{volume.ErrNotFound, codes.NotFound},
	{volume.ErrExists, codes.AlreadyExists},
	// external-provisioner and ours take it for "try another node".
	{volume.ErrNoSpace, codes.ResourceExhausted},
	{volume.ErrInvalid, codes.InvalidArgument},
	{volume.ErrInUse, codes.FailedPrecondition},
	{volume.ErrNotTogether, codes.FailedPrecondition},
	{volume.ErrIdentity, codes.FailedPrecondition},
	{volume.ErrNotAdoptable, codes.FailedPrecondition},
	{volume.ErrNotBlank, codes.FailedPrecondition},
	{volume.ErrToolMissing, codes.FailedPrecondition},
	// "does not carry secrets that are valid" (CSI spec, Error Scheme).
	{volume.ErrKey, codes.Unauthenticated},
	{mount.ErrDamaged, codes.FailedPrecondition},
	{luks.ErrDamaged, codes.FailedPrecondition},
	{volume.ErrPoolUnavailable, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// openCodes leave the outcome open: kubelet and the sidecars (isFinalError, isCSIFinalError) go on
// with the operation, or undo it. With any other they hold it for one that had no effect, and
// forget what it may have left.
var openCodes = []codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted}

// ToStatus turns an error of the domain into a gRPC status, with the error's text
// as message. nil stays nil, and what is a status already keeps its code. The outcome of
// an error that the table does not know is open, but for a refusal by the API server, and
// so is that of a *provision.Pending, whatever its cause.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	_, pending := errors.AsType[*provision.Pending](err)
	if s, ok := status.FromError(err); ok && !pending {
		return s.Err()
	}
	code := codeOf(err)
	if pending && !slices.Contains(openCodes, code) {
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

func codeOf(err error) codes.Code {
	for _, row := range codeTable {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	if provision.IsRefusedByAPI(err) {
		return codes.Internal
	}
	return codes.Unavailable
}
