// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/volume"
)

// Offer is what one node could still make.
type Offer struct {
	Node string
	// FreeBytes can be promised in all.
	FreeBytes int64
	// MaxVolumeBytes is the largest single volume.
	MaxVolumeBytes int64
}

// Offers reads what the agents publish of their pools and disks. Nothing in
// Kubernetes needs it, where the scheduler reads CSIStorageCapacity; it serves
// GetCapacity and COs that name no node.
type Offers struct {
	// Live reads from the API server: no cache holds every disk of the cluster.
	Live client.Reader
}

// List returns what each node offers for these parameters, the largest volume
// first. Nil parameters ask for everything there is.
func (o Offers) List(ctx context.Context, params *Parameters) ([]Offer, error) {
	byNode := map[string]*Offer{}
	add := func(node string, bytes int64) {
		offer := byNode[node]
		if offer == nil {
			offer = &Offer{Node: node}
			byNode[node] = offer
		}
		if params != nil {
			bytes = volume.Encryption(params.Encryption).Usable(bytes)
		}
		offer.FreeBytes += bytes
		offer.MaxVolumeBytes = max(offer.MaxVolumeBytes, bytes)
	}
	if params == nil || params.Mode != berth.ModeDevice {
		if err := o.pools(ctx, params, add); err != nil {
			return nil, err
		}
	}
	if params == nil || params.Mode == berth.ModeDevice {
		if err := o.devices(ctx, params, add); err != nil {
			return nil, err
		}
	}
	offers := make([]Offer, 0, len(byNode))
	for _, offer := range byNode {
		offers = append(offers, *offer)
	}
	slices.SortFunc(offers, func(a, b Offer) int {
		return cmp.Or(cmp.Compare(b.MaxVolumeBytes, a.MaxVolumeBytes), cmp.Compare(a.Node, b.Node))
	})
	return offers, nil
}

func (o Offers) pools(ctx context.Context, params *Parameters, add func(string, int64)) error {
	list := &berth.PoolList{}
	if err := o.Live.List(ctx, list); err != nil {
		return fmt.Errorf("list Pools: %w", err)
	}
	for i := range list.Items {
		pool := &list.Items[i]
		if params != nil && (!slices.Contains(params.Pools, pool.Spec.PoolSetName) || string(pool.Spec.Kind) != string(params.Mode)) {
			continue
		}
		if free := usableRoom(pool, params != nil && params.RequireQuota); free != nil {
			add(pool.Spec.NodeName, free.Value())
		}
	}
	return nil
}

// usableRoom is what a pool has published for new volumes, nil when none is made there now.
func usableRoom(pool *berth.Pool, requireQuota bool) *resource.Quantity {
	if requireQuota && pool.Status.Quota != berth.QuotaEnforced ||
		!meta.IsStatusConditionTrue(pool.Status.Conditions, berth.PoolReady) || pool.Status.ReadOnly {
		return nil
	}
	return pool.Status.Free
}

func (o Offers) devices(ctx context.Context, params *Parameters, add func(string, int64)) error {
	list := &berth.BlockDeviceList{}
	if err := o.Live.List(ctx, list); err != nil {
		return fmt.Errorf("list BlockDevices: %w", err)
	}
	for i := range list.Items {
		device := &list.Items[i]
		if !meta.IsStatusConditionTrue(device.Status.Conditions, berth.BlockDeviceUsable) || device.Status.ClaimState != berth.ClaimStateUnclaimed {
			continue
		}
		var selector *berth.DeviceSelector
		if params != nil {
			selector = params.DeviceSelector
		}
		switch matches, err := discovery.Matches(selector, device); {
		case err != nil:
			return err
		case matches:
			add(device.Spec.NodeName, device.Status.SizeBytes)
		}
	}
	return nil
}
