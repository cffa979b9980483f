// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// ToStatus turns an error of the domain into a gRPC status, with the error's text
// as message. nil stays nil, and what is a status already keeps its code. An error
// that the table does not know is Internal: its outcome is open.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	for _, row := range codeTable {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}
