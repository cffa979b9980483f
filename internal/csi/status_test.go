// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestToStatus(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want codes.Code
	}{
		{"not found", volume.ErrNotFound, codes.NotFound},
		{"exists", volume.ErrExists, codes.AlreadyExists},
		{"no space", volume.ErrNoSpace, codes.ResourceExhausted},
		{"in use", volume.ErrInUse, codes.FailedPrecondition},
		{"busy", volume.ErrBusy, codes.Aborted},
		{"invalid", volume.ErrInvalid, codes.InvalidArgument},
		{"identity", volume.ErrIdentity, codes.FailedPrecondition},
		{"not adoptable", volume.ErrNotAdoptable, codes.FailedPrecondition},
		{"not blank", volume.ErrNotBlank, codes.FailedPrecondition},
		{"tool missing", volume.ErrToolMissing, codes.FailedPrecondition},
		{"damaged", mount.ErrDamaged, codes.FailedPrecondition},
		{"a wrong passphrase", luks.ErrWrongKey, codes.Unauthenticated},
		{"no passphrase", volume.ErrKey, codes.Unauthenticated},
		{"a damaged header", luks.ErrDamaged, codes.FailedPrecondition},
		{"pool unavailable", volume.ErrPoolUnavailable, codes.Unavailable},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded},
		{"canceled", context.Canceled, codes.Canceled},
		{"unknown", errors.New("disk on fire"), codes.Unavailable},
		{"no superblock by itself", mount.ErrNoFilesystem, codes.Unavailable},
		{"a command's exit", &hostexec.ExitError{Command: "lvm", ExitCode: 5}, codes.Unavailable},
		{"the API server does not answer", apierrors.NewTimeoutError("etcd", 1), codes.Unavailable},
		{"the API server refuses", apierrors.NewForbidden(schema.GroupResource{}, "snapshot-1", nil), codes.Internal},
		{"a node that goes on", &provision.Pending{Volume: "pvc-1", Cause: errors.New("connection refused")}, codes.Unavailable},
		{"a node that goes on, busy", &provision.Pending{Volume: "pvc-1", Cause: volume.ErrBusy}, codes.Aborted},
		{"a node that goes on after a refusal", &provision.Pending{Volume: "pvc-1", Cause: errors.Join(volume.ErrInvalid, errors.New("connection refused"))}, codes.Unavailable},
		{"the volume before the clock", errors.Join(context.DeadlineExceeded, volume.ErrNoSpace), codes.ResourceExhausted},
		{"a status stays", status.Error(codes.OutOfRange, "too large"), codes.OutOfRange},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, err := range []error{tt.err, fmt.Errorf("stage volume pvc-1: %w", tt.err)} {
				got := csi.ToStatus(err)
				if status.Code(got) != tt.want {
					t.Errorf("%v: code %v, want %v", err, status.Code(got), tt.want)
				}
				if _, isStatus := tt.err.(interface{ GRPCStatus() *status.Status }); !isStatus && status.Convert(got).Message() != err.Error() {
					t.Errorf("message %q, want %q", status.Convert(got).Message(), err)
				}
			}
		})
	}
	if csi.ToStatus(nil) != nil {
		t.Error("nil became an error")
	}
}

// Every sentinel of the domain has a code of its own choosing.
func TestToStatusKnowsEverySentinel(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		volume.ErrNoSpace, volume.ErrNotFound, volume.ErrExists, volume.ErrInUse, volume.ErrBusy, volume.ErrIdentity,
		volume.ErrNotAdoptable, volume.ErrNotBlank, volume.ErrInvalid, volume.ErrToolMissing, volume.ErrPoolUnavailable,
	} {
		if code := status.Code(csi.ToStatus(err)); code == codes.Internal || code == codes.Unknown || code == codes.Unavailable && !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("%v is not in the table", err)
		}
	}
}
