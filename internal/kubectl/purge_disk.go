// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// splitDisk reads NODE/DISK, which is one part less than what lies in a pool has.
func splitDisk(what string) (node, name string, isDisk bool) {
	node, name, isDisk = strings.Cut(what, "/")
	return node, name, isDisk && node != "" && name != "" && !strings.Contains(name, "/")
}

// diskOf finds a disk of a node by its BlockDevice, or by the UID of the volume that holds it or
// is asked to be purged of it.
func (p *plugin) diskOf(ctx context.Context, node, name string) (*berth.BlockDevice, error) {
	devices := &berth.BlockDeviceList{}
	if err := p.list(ctx, devices, "BlockDevices"); err != nil {
		return nil, err
	}
	for i := range devices.Items {
		d := &devices.Items[i]
		held := d.Spec.ClaimRef != nil && string(d.Spec.ClaimRef.UID) == name
		asked := slices.ContainsFunc(d.Spec.Purge, func(r berth.PurgeRequest) bool { return r.UID == name })
		if d.Spec.NodeName == node && (d.Name == name || held || asked) {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%w: node %s has no BlockDevice %s, and none that a volume of that UID holds; kubectl berth orphans list -o wide shows what is left over", errUsage, node, name)
}

// purgeDisk is purge of a whole disk whose volume has no LocalVolume.
func (p *plugin) purgeDisk(ctx context.Context, node, name string) (bool, error) {
	d, err := p.diskOf(ctx, node, name)
	if err != nil {
		return false, err
	}
	plan := &purgePlan{Node: node, Disk: d.Name, LeftOver: leftOverOnDisk(d)}
	asked := slices.IndexFunc(d.Spec.Purge, func(r berth.PurgeRequest) bool {
		return r.UID == string(plan.LeftOver.UID) || p.o.Withdraw || plan.LeftOver.UID == ""
	})
	if asked >= 0 && d.Spec.Purge[asked].UID != string(plan.LeftOver.UID) {
		// Its claim is gone, or another's: what was asked for is what is spoken of.
		r := d.Spec.Purge[asked]
		plan.LeftOver = berth.LeftOver{Kind: r.Kind, UID: types.UID(r.UID), Identity: r.Identity, Location: d.Status.Path, SizeBytes: d.Status.SizeBytes}
	} else if !p.o.Withdraw {
		if err := p.refuseDisk(ctx, d, plan); err != nil {
			return false, err
		}
	}
	return p.step(ctx, d, plan, asked)
}

// leftOverOnDisk is what holds a disk; without a UID when nothing does.
func leftOverOnDisk(d *berth.BlockDevice) berth.LeftOver {
	l := berth.LeftOver{Kind: berth.LeftOverVolume, Location: d.Status.Path, SizeBytes: d.Status.SizeBytes}
	if ref := d.Spec.ClaimRef; ref != nil {
		l.UID, l.Name = ref.UID, ref.Name
	}
	if id := d.Status.Identity; id != nil {
		l.Identity = berth.DiskIdentity(id.Scheme, id.Value, d.Status.SizeBytes)
	}
	if fs := d.Status.Filesystem; fs != nil && len(fs.MountPoints) > 0 {
		l.InUse = "mounted at " + strings.Join(fs.MountPoints, ", ")
	}
	return l
}

// refuseDisk finds what keeps a disk from being purged, as far as objects say it. The agent looks
// for all of it again.
func (p *plugin) refuseDisk(ctx context.Context, d *berth.BlockDevice, plan *purgePlan) error {
	if !plan.begun(d) {
		plan.Refusals = append(plan.Refusals, whyDiskKept(d)...)
	}
	has, err := p.whoHas(ctx, d)
	plan.Refusals = append(plan.Refusals, has...)
	return err
}

// whyDiskKept says why nothing is done with what is left over on a disk, as far as its object says it.
func whyDiskKept(d *berth.BlockDevice) []string {
	switch ref := d.Spec.ClaimRef; {
	case ref == nil:
		return []string{fmt.Sprintf("no volume holds it, so that there is nothing of Berth on it; kubectl berth why disk/%s says how it is", d.Name)}
	case ref.Kind != "LocalVolume":
		return []string{fmt.Sprintf("it is part of %s %s, and no volume that was left over", ref.Kind, ref.Name)}
	case d.Status.ClaimState == berth.ClaimStateReleased:
		return []string{fmt.Sprintf("it was released already; kubectl berth why disk/%s says how it is", d.Name)}
	case d.Status.State == berth.DeviceInactive:
		return []string{"the node does not show it now; it can be had when it is back"}
	case d.Spec.Reserved != "":
		return []string{"it is reserved: " + d.Spec.Reserved}
	}
	return nil
}

// whoHas says whether there is a LocalVolume of the name that the holder of a disk has.
func (p *plugin) whoHas(ctx context.Context, d *berth.BlockDevice) ([]string, error) {
	ref := d.Spec.ClaimRef
	if ref == nil {
		return nil, nil
	}
	switch err := p.client.Get(ctx, client.ObjectKey{Name: ref.Name}, &berth.LocalVolume{}); {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read LocalVolume %s: %w", ref.Name, err)
	}
	return []string{fmt.Sprintf("there is a LocalVolume %s: kubectl delete localvolume %s deletes what it has", ref.Name, ref.Name)}, nil
}

// begun reports whether the removal of what holds, or held, the disk has begun, or is done.
func (l *purgePlan) begun(d *berth.BlockDevice) bool {
	return slices.ContainsFunc(d.Status.Purges, func(s berth.PurgeStatus) bool {
		return s.UID == string(l.LeftOver.UID) && (s.State == berth.PurgePurging || s.State == berth.PurgePurged)
	})
}
