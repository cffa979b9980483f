// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// An object can be older than what is on its disk: etcd was restored, or somebody has made
// the object anew. Then it says that the disk is free, waits for a wipe, or is another's,
// and the token of the wipe is as good as it ever was. The node's own records are written
// before anything is on a disk and end before its release begins, so they are believed.

// usurped returns who holds a disk by the node's records, if the object does not say so.
func (inv *Inventory) usurped(name string, bd *v1alpha1.BlockDevice) (device.Owner, bool) {
	if inv.opts.Holder == nil {
		return device.Owner{}, false
	}
	claimedBy := ""
	if bd != nil {
		claimedBy = ownerOf(bd).UID
	}
	owner, held := inv.opts.Holder(name, claimedBy)
	return owner, held && (bd == nil || !heldBy(bd, owner.UID))
}

// asRecorded returns the object as the node's records say that it is claimed: the object
// itself where they say nothing else.
func (inv *Inventory) asRecorded(name string, bd *v1alpha1.BlockDevice) *v1alpha1.BlockDevice {
	owner, usurped := inv.usurped(name, bd)
	if !usurped {
		return bd
	}
	claimed := newObject(name, inv.opts.NodeName)
	if bd != nil {
		claimed = bd.DeepCopy()
	}
	claimed.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: owner.Kind, Name: owner.Name, UID: types.UID(owner.UID)}
	claimed.Status.ClaimState, claimed.Status.Wipe = v1alpha1.ClaimStateClaimed, nil
	controllerutil.AddFinalizer(claimed, v1alpha1.AgentFinalizer)
	return claimed
}

// refuseUsurped returns volume.ErrBusy if by the node's records another than the owner with
// this UID holds the disk.
func (inv *Inventory) refuseUsurped(bd *v1alpha1.BlockDevice, ownerUID string) error {
	if owner, usurped := inv.usurped(bd.Name, bd); usurped && owner.UID != ownerUID {
		return fmt.Errorf("BlockDevice %s is held by %s %s, by the records of the node: %w", bd.Name, owner.Kind, owner.Name, volume.ErrBusy)
	}
	return nil
}

// refusePooled returns volume.ErrBusy if by the node's records the disk, which is to be
// wiped, is part of a pool: its release begins with their end.
func (inv *Inventory) refusePooled(name string) error {
	if inv.opts.PoolOf == nil {
		return nil
	}
	switch pool, err := inv.opts.PoolOf(name); {
	case err != nil:
		return fmt.Errorf("BlockDevice %s may be part of a pool: %w", name, err)
	case pool != "":
		return fmt.Errorf("BlockDevice %s is part of pool %s, by the records of the node: %w", name, pool, volume.ErrBusy)
	}
	return nil
}
