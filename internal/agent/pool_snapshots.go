// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"sync/atomic"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
)

// snapshotPolicy is how much room thick snapshots get. It follows the PoolSet while the
// backend lives.
type snapshotPolicy struct {
	of atomic.Pointer[lvm.SnapshotPolicy]
}

func (p *snapshotPolicy) get() lvm.SnapshotPolicy {
	if policy := p.of.Load(); policy != nil {
		return *policy
	}
	return lvm.DefaultSnapshotPolicy()
}

// set reads spec.snapshots.
func (p *snapshotPolicy) set(spec *v1alpha1.SnapshotRoom) error {
	policy := lvm.DefaultSnapshotPolicy()
	if spec != nil {
		policy = lvm.SnapshotPolicy{
			InitialPercent: int64(spec.InitialPercent), ThresholdPercent: int64(spec.ThresholdPercent), ExtendPercent: int64(spec.ExtendPercent),
		}
	}
	if err := policy.Check(); err != nil {
		return fmt.Errorf("spec.snapshots: %w", err)
	}
	p.of.Store(&policy)
	return nil
}
