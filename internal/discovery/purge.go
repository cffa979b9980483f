// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Purges returns the objects of the disks of which somebody has asked to purge what is on them,
// and of those that still say what has come of that or have one of these names. They must not be changed.
func (inv *Inventory) Purges(ctx context.Context, names ...string) (asked []*v1alpha1.BlockDevice, err error) {
	objects, err := inv.complete(ctx)
	if err != nil {
		return nil, err
	}
	for _, bd := range objects {
		if len(bd.Spec.Purge) > 0 || len(bd.Status.Purges) > 0 || slices.Contains(names, bd.Name) {
			asked = append(asked, bd)
		}
	}
	return asked, nil
}

// TellPurges writes what has come of spec.purge of a disk; the same again writes nothing.
func (inv *Inventory) TellPurges(ctx context.Context, name string, purges []v1alpha1.PurgeStatus) (*v1alpha1.BlockDevice, error) {
	bd, err := inv.change(ctx, name, func(bd *v1alpha1.BlockDevice) (bool, error) {
		if equality.Semantic.DeepEqual(bd.Status.Purges, purges) {
			return false, nil
		}
		bd.Status.Purges = purges
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("say what has come of the purge of BlockDevice %s: %w", name, err)
	}
	return bd, nil
}
