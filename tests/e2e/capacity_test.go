// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"

	. "github.com/onsi/gomega"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// largestPublished is the largest volume that the published capacity promises for
// a class on a node, in bytes; 0 when nothing is published.
func largestPublished(ctx context.Context, g Gomega, class, node string) int64 {
	capacities := &storagev1.CSIStorageCapacityList{}
	g.Expect(suite.client.List(ctx, capacities)).To(Succeed())
	var largest int64
	for _, capacity := range capacities.Items {
		if capacity.StorageClassName != class || capacity.NodeTopology == nil ||
			capacity.NodeTopology.MatchLabels[v1alpha1.TopologyKeyNode] != node {
			continue
		}
		g.Expect(capacity.Capacity).NotTo(BeNil(), "%s has no capacity; the scheduler's scoring would crash on it", capacity.Name)
		if capacity.MaximumVolumeSize != nil {
			largest = max(largest, capacity.MaximumVolumeSize.Value())
		} else {
			largest = max(largest, capacity.Capacity.Value())
		}
	}
	return largest
}
