// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// choosePool returns which of the request's pools has the most room on its node: what the
// agent has published, less what was asked of the pool and does not stand yet, so that a
// burst spreads. Of equal ones it is the first of the class. Where none has room the first is
// asked, whose agent says why.
//
// The choice may be wrong by the time it gets there, or for a volume that lies on several disks of
// the pool, of which each must have room for its part. Then the agent refuses the volume, it is
// taken back, and the others are asked.
func (v *Volumes) choosePool(ctx context.Context, req Request) (string, error) {
	room, err := v.roomOfPools(ctx, req)
	if err != nil {
		return "", err
	}
	for pool, sizeBytes := range v.tracker.unmade(req.Spec.NodeName) {
		if _, ok := room[pool]; ok {
			room[pool] -= sizeBytes
		}
	}
	best := req.Pools[0]
	for _, pool := range slices.Backward(req.Pools) {
		have, ok := room[pool]
		if most, other := room[best]; ok && (!other || have >= most) {
			best = pool
		}
	}
	return best, nil
}

// otherPools are those of a request that may still take what one of them has refused.
func (v *Volumes) otherPools(ctx context.Context, req Request, refused string) []string {
	if req.Spec.Pool != "" || len(req.Pools) < 2 { //nolint:mnd // one and another
		return nil
	}
	room, err := v.roomOfPools(ctx, req)
	if err != nil {
		return nil // the refusal stands, and the next attempt asks again
	}
	return slices.DeleteFunc(slices.Clone(req.Pools), func(pool string) bool {
		have, ready := room[pool]
		return pool == refused || !ready || have < req.Spec.SizeBytes
	})
}

// roomOfPools is what the pools on the request's node have published that can take such volumes
// now, by the names of their PoolSets.
func (v *Volumes) roomOfPools(ctx context.Context, req Request) (map[string]int64, error) {
	list := &berth.PoolList{}
	if err := v.live.List(ctx, list, client.MatchingFields{"spec.nodeName": req.Spec.NodeName}); err != nil {
		return nil, fmt.Errorf("list the Pools of node %q, to choose one for LocalVolume %q: %w", req.Spec.NodeName, req.Name, err)
	}
	room := map[string]int64{}
	for i := range list.Items {
		pool := &list.Items[i]
		if string(pool.Spec.Kind) != string(req.Spec.Mode) {
			continue
		}
		if free := usableRoom(pool, req.Spec.RequireQuota); free != nil {
			room[pool.Spec.PoolSetName] = free.Value()
		}
	}
	return room, nil
}
