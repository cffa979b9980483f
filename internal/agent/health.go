// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// Health tells the CSI node service what is wrong with the volumes and the storage of
// this node. It reads sysfs and what is known already, and starts no program.
type Health struct {
	Volumes *Volumes
	// Failing returns the node's failing disks.
	Failing func() []discovery.FailingDisk
	// Under returns the kernel names of what a device or directory stands on;
	// block.Sysfs has it.
	Under func(ctx context.Context, path string) ([]string, error)
	// Cache reads Pools from the informers' cache, once PoolsSynced says that it holds
	// them.
	Cache       client.Reader
	PoolsSynced func() bool
	NodeName    string
}

var _ csi.Health = (*Health)(nil)

// VolumeProblems implements csi.Health.
func (h *Health) VolumeProblems(ctx context.Context, name string) ([]csi.Problem, error) {
	e, err := h.Volumes.entry(ctx, name)
	if err != nil {
		if errors.Is(err, volume.ErrIdentity) {
			return []csi.Problem{{Severity: csi.Inaccessible, Reason: v1alpha1.ReasonIdentityMismatch, Message: err.Error()}}, nil
		}
		return nil, err
	}
	v, err := h.Volumes.Locate(ctx, name)
	switch {
	case errors.Is(err, volume.ErrPoolUnavailable):
		return []csi.Problem{{Severity: csi.Inaccessible, Reason: "PoolUnavailable", Message: err.Error()}}, nil
	case errors.Is(err, volume.ErrIdentity):
		return []csi.Problem{{Severity: csi.Inaccessible, Reason: v1alpha1.ReasonIdentityMismatch, Message: err.Error()}}, nil
	case errors.Is(err, volume.ErrNotFound):
		return []csi.Problem{{Severity: csi.Inaccessible, Reason: v1alpha1.ReasonMissing, Message: err.Error()}}, nil
	case err != nil:
		return nil, err
	}
	problems, err := h.told(ctx, e)
	if err != nil {
		return nil, err
	}
	disks, err := h.disksUnder(ctx, v.Location)
	return append(problems, disks...), err
}

// told is what the volume's backend knows.
func (h *Health) told(ctx context.Context, e ledger.Entry) (problems []csi.Problem, err error) {
	found, err := problemsOf(ctx, h.Volumes.Backends, e)
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		severity := csi.Degraded
		if p.Inaccessible {
			severity = csi.Inaccessible
		}
		problems = append(problems, csi.Problem{Severity: severity, Reason: p.Reason, Message: p.Message})
	}
	return problems, nil
}

// disksUnder returns the failing disks that a volume stands on.
func (h *Health) disksUnder(ctx context.Context, loc volume.Location) ([]csi.Problem, error) {
	failing := h.Failing()
	if len(failing) == 0 {
		return nil, nil
	}
	path := loc.Device
	if path == "" {
		path = loc.Directory
	}
	below, err := h.Under(ctx, path)
	if errors.Is(err, volume.ErrNotFound) {
		return []csi.Problem{{Severity: csi.Inaccessible, Reason: v1alpha1.ReasonMissing, Message: err.Error()}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the disks under it: %w", err)
	}
	var problems []csi.Problem
	for _, disk := range failing {
		if slices.Contains(below, disk.KernelName) {
			problems = append(problems, failingDisk(disk))
		}
	}
	return problems, nil
}

func failingDisk(disk discovery.FailingDisk) csi.Problem {
	return csi.Problem{Severity: csi.Degraded, Reason: "DiskFailing", Message: fmt.Sprintf(
		"BlockDevice %s (/dev/%s) is failing: %s", disk.Name, disk.KernelName, disk.Message)}
}

// StorageProblems implements csi.Health: pools that are not whole, and failing disks
// that Berth holds.
func (h *Health) StorageProblems(ctx context.Context) ([]csi.Problem, error) {
	var problems []csi.Problem
	if h.PoolsSynced() {
		pools := &v1alpha1.PoolList{}
		if err := h.Cache.List(ctx, pools); err != nil {
			return nil, fmt.Errorf("list Pools: %w", err)
		}
		for i := range pools.Items {
			if p, bad := poolProblem(&pools.Items[i]); bad && pools.Items[i].Spec.NodeName == h.NodeName {
				problems = append(problems, p)
			}
		}
	}
	for _, disk := range h.Failing() {
		if disk.Held {
			problems = append(problems, failingDisk(disk))
		}
	}
	return problems, nil
}

func poolProblem(pool *v1alpha1.Pool) (csi.Problem, bool) {
	p := csi.Problem{Severity: csi.Degraded, Reason: "PoolDegraded"}
	switch pool.Status.State {
	case v1alpha1.PoolDegraded:
	case v1alpha1.PoolFailed:
		p.Severity, p.Reason = csi.Inaccessible, "PoolFailed"
	default:
		return p, false
	}
	p.Message = fmt.Sprintf("Pool %s is %s", pool.Name, pool.Status.State)
	if ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady); ready != nil && ready.Message != "" {
		p.Message += ": " + ready.Message
	}
	return p, true
}
