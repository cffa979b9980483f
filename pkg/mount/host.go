// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"

	"github.com/berth-dev/berth/pkg/hostexec"
)

// Host is where the devices and the mounts are; *hostexec.Host implements it.
type Host interface {
	// Run runs a program of the host.
	Run(ctx context.Context, c hostexec.Command) (hostexec.Result, error)
	// LookPath finds a program of the host; volume.ErrToolMissing when it has none.
	LookPath(ctx context.Context, name string) (string, error)
	// Root is the directory under which this process sees the host's files.
	Root() string
	// InMountNamespace runs f on a thread in the host's mount namespace.
	InMountNamespace(ctx context.Context, f func() error) error
}

// The filesystems that volumes can have.
const (
	Ext4  = "ext4"
	XFS   = "xfs"
	Btrfs = "btrfs"
)

var fsTypes = []string{Ext4, XFS, Btrfs}
