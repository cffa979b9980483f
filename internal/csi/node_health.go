// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/pkg/volume"
)

// Severity of a Problem.
type Severity int

const (
	// Degraded: it can be used and should be looked after.
	Degraded Severity = iota
	// Inaccessible: it cannot be used on this node now.
	Inaccessible
)

// Problem is something wrong with a volume, or with what volumes stand on.
type Problem struct {
	Severity Severity
	// Reason is one word in CamelCase, Message a sentence.
	Reason, Message string
}

// Health tells what is wrong with the storage of this node, without starting any
// program: kubelet asks for every volume all the time.
type Health interface {
	// VolumeProblems returns what is wrong with a volume and what it stands on.
	// volume.ErrNotFound: this node has no such volume.
	VolumeProblems(ctx context.Context, name string) ([]Problem, error)
	// StorageProblems returns what is wrong with the pools and disks of this node.
	StorageProblems(ctx context.Context) ([]Problem, error)
}

// NodeGetVolumeHealth tells what is wrong with a volume: its storage is missing or
// another than was recorded, a disk under it is failing, or its filesystem has met
// errors.
func (n *Node) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	name := req.GetVolumeId()
	if err := required("volume_id", name); err != nil {
		return nil, err
	}
	path := cmp.Or(req.GetStagingTargetPath(), req.GetVolumePublishPath())
	if path != "" && !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: %s is not an absolute path", volume.ErrInvalid, path)
	}
	problems, err := n.Health.VolumeProblems(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("health of volume %s: %w", name, err)
	}
	if path != "" {
		inside, err := n.filesystemProblems(ctx, filepath.Clean(path))
		if err != nil {
			return nil, fmt.Errorf("health of volume %s: %w", name, err)
		}
		problems = append(problems, inside...)
	}
	health := &csi.VolumeHealth{VolumeId: name}
	for _, p := range distinct(problems) {
		status := csi.VolumeHealthErrorType_DEGRADED
		if p.Severity == Inaccessible {
			status = csi.VolumeHealthErrorType_INACCESSIBLE
		}
		health.HealthStatuses = append(health.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Status: status, Reason: p.Reason, Message: p.Message})
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// filesystemProblems looks at what is mounted at a path. Nothing may be: a block
// volume, or one that is being staged.
func (n *Node) filesystemProblems(ctx context.Context, path string) ([]Problem, error) {
	c, err := n.Mounter.Condition(ctx, path)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var problems []Problem
	if c.ShutDown {
		problems = append(problems, Problem{Inaccessible, "FilesystemShutDown", "the filesystem was shut down after an error; the kernel's log tells which"})
	}
	if c.ReadOnly {
		problems = append(problems, Problem{Degraded, "FilesystemReadOnly", "the kernel has made the filesystem read-only after an error; its log tells which"})
	}
	if c.Errors > 0 {
		problems = append(problems, Problem{Degraded, "FilesystemErrors", fmt.Sprintf(
			"the filesystem has counted %d errors; ext4 is checked when the volume is mounted the next time, btrfs by a scrub (btrfs device stats says what they were)", c.Errors)})
	}
	return problems, nil
}

// NodeGetStorageHealth tells what is wrong with the pools and disks of this node.
func (n *Node) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	problems, err := n.Health.StorageProblems(ctx)
	if err != nil {
		return nil, fmt.Errorf("health of the node's storage: %w", err)
	}
	resp := &csi.NodeGetStorageHealthResponse{}
	for _, p := range distinct(problems) {
		status := csi.StorageHealthErrorType_STORAGE_DEGRADED
		if p.Severity == Inaccessible {
			status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
		}
		resp.BackendHealth = append(resp.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{Status: status, Reason: p.Reason, Message: p.Message})
	}
	return resp, nil
}

// distinct joins the messages of problems of one severity and reason, of which an
// answer must not hold two (CSI 1.13, VolumeHealthEntry and StorageBackendHealth).
func distinct(problems []Problem) []Problem {
	type kind struct {
		severity Severity
		reason   string
	}
	var joined []Problem
	at := map[kind]int{}
	for _, p := range problems {
		k := kind{p.Severity, p.Reason}
		if i, found := at[k]; found {
			joined[i].Message += "; " + p.Message
			continue
		}
		at[k] = len(joined)
		joined = append(joined, p)
	}
	return joined
}
