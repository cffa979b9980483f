// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// Resolve implements device.Registry.
func (inv *Inventory) Resolve(ctx context.Context, diskName string) (device.Claimed, error) {
	if err := inv.waitReady(ctx); err != nil {
		return device.Claimed{}, err
	}
	bd := &v1alpha1.BlockDevice{}
	if err := inv.opts.Reader.Get(ctx, key(diskName), bd); err != nil {
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("%w: %w", volume.ErrNotFound, err)
		}
		return device.Claimed{}, fmt.Errorf("read BlockDevice %s: %w", diskName, err)
	}
	if bd.Spec.NodeName != inv.opts.NodeName {
		return device.Claimed{}, fmt.Errorf("BlockDevice %s belongs to node %s: %w", diskName, bd.Spec.NodeName, volume.ErrIdentity)
	}
	inv.ObserveObject(bd)
	if err := inv.refuseUsurped(bd, ""); err != nil {
		return device.Claimed{}, err
	}
	claimed := asClaimed(bd)
	if stateOf(bd) == device.StateReleased && bd.Status.Wipe != nil {
		if err := inv.refusePooled(diskName); err != nil {
			return device.Claimed{}, err
		}
		claimed.WipeToken = bd.Status.Wipe.Token
		if c := bd.Status.Wipe.Content; c != nil {
			claimed.Content = &device.Content{Type: c.Type, UUID: c.UUID}
		}
	}
	if claimed.State != device.StateUnclaimed && bd.Status.MachineID != "" && bd.Status.MachineID != inv.opts.MachineID {
		return device.Claimed{}, fmt.Errorf("BlockDevice %s was claimed on machine %s, and node %s is machine %s now: %w",
			diskName, bd.Status.MachineID, inv.opts.NodeName, inv.opts.MachineID, volume.ErrIdentity)
	}
	d, identity, err := inv.find(ctx, diskName)
	if err != nil {
		return device.Claimed{}, fmt.Errorf("find BlockDevice %s: %w", diskName, err)
	}
	claimed.Path, claimed.SizeBytes = d.Path, d.SizeBytes
	claimed.IdentityScheme, claimed.IdentityValue = identity.Scheme, identity.Value
	return claimed, nil
}

// find looks through all of the kernel's devices for the one with an object's
// identity.
func (inv *Inventory) find(ctx context.Context, diskName string) (*block.Device, block.Identity, error) {
	devices, err := inv.sysfs.Devices(ctx)
	if err != nil {
		return nil, block.Identity{}, err
	}
	topology := block.NewTopology(devices)
	var found []*block.Device
	var unread error
	var identity block.Identity
	for i := range devices {
		d := &devices[i]
		if d.Hidden || d.SizeBytes == 0 && d.Err == nil {
			continue
		}
		of := block.Identify(d)
		if parent := topology[d.Parent]; d.Type == block.TypePartition && parent != nil {
			of = block.IdentifyPartition(d, parent)
		}
		if block.Name(inv.opts.NodeName, of) == diskName {
			found, identity = append(found, d), of
			unread = errors.Join(unread, d.Err)
		} else if d.Err != nil && d.Type == block.TypeDisk {
			// It may be the one: what it says of itself could not be read in full.
			unread = errors.Join(unread, fmt.Errorf("%s: %w", d.Path, d.Err))
		}
	}
	switch {
	case len(found) > 1:
		return nil, identity, fmt.Errorf("%s all say they are %s: %w", joinPaths(found), identity, volume.ErrIdentity)
	case unread != nil:
		return nil, identity, unread
	case len(found) == 0:
		return nil, identity, fmt.Errorf("none of the %d block devices is it: %w", len(devices), volume.ErrNotFound)
	}
	return found[0], identity, nil
}

// look gathers the facts on a disk from the kernel, not from the mirror.
func (inv *Inventory) look(ctx context.Context, bd *v1alpha1.BlockDevice) (*facts, error) {
	inv.mu.Lock()
	filters := inv.filters
	inv.mu.Unlock()
	f := &facts{spec: bd.Spec, status: bd.Status, filters: filters}
	inv.addHealth(bd.Name, f)
	devices, err := inv.sysfs.Devices(ctx)
	if err != nil {
		return nil, err
	}
	f.topology = block.NewTopology(devices)
	for i := range devices {
		d := &devices[i]
		of := block.Identify(d)
		if parent := f.topology[d.Parent]; d.Type == block.TypePartition && parent != nil {
			of = block.IdentifyPartition(d, parent)
		}
		if !d.Hidden && block.Name(inv.opts.NodeName, of) == bd.Name {
			f.devices, f.identity = append(f.devices, d), of
		}
	}
	if filters == nil {
		return f, nil
	}
	if f.usage, err = inv.sysfs.Usage(ctx, devices); err != nil {
		return nil, err
	}
	f.system = f.topology.SystemDevices(f.usage, filters.SystemMountPoints())
	return f, nil
}

// Release implements device.Registry.
func (inv *Inventory) Release(ctx context.Context, diskName, ownerUID string, policy volume.WipePolicy) (string, error) {
	if err := volume.CheckWipe(volume.ModeDevice, policy); err != nil {
		return "", fmt.Errorf("release BlockDevice %s: %w", diskName, err)
	}
	written, err := inv.change(ctx, diskName, func(bd *v1alpha1.BlockDevice) (bool, error) {
		if bd.Spec.ClaimRef == nil || string(bd.Spec.ClaimRef.UID) != ownerUID {
			return false, fmt.Errorf("release BlockDevice %s: %s does not hold it: %w", diskName, ownerUID, volume.ErrNotFound)
		}
		if err := inv.refuseUsurped(bd, ownerUID); err != nil {
			return false, fmt.Errorf("release: %w", err)
		}
		if stateOf(bd) == device.StateReleased {
			return false, nil
		}
		wipe := &v1alpha1.BlockDeviceWipe{Policy: v1alpha1.WipePolicy(policy), StartedAt: metav1.Now()}
		if policy != volume.WipeNone {
			wipe.Token = uuid.NewString()
			content, err := inv.releasing(ctx, bd)
			if err != nil {
				return false, fmt.Errorf("release BlockDevice %s: %w", diskName, err)
			}
			wipe.Content = content
		}
		bd.Status.ClaimState, bd.Status.Wipe = v1alpha1.ClaimStateReleased, wipe
		inv.forgetContent(diskName)
		if policy == volume.WipeNone {
			setUsable(bd, (&facts{spec: bd.Spec, status: bd.Status}).givenBack())
			return true, nil
		}
		setUsable(bd, (&facts{spec: bd.Spec, status: bd.Status}).released())
		return true, nil
	})
	if err != nil {
		return "", err
	}
	if written.Status.Wipe == nil {
		return "", nil
	}
	return written.Status.Wipe.Token, nil
}

// releasing returns what is on a disk that is about to be released for a wipe; nil when that is
// not known. What the node's records say of it is believed where the disk does not say otherwise,
// and where it does, the disk is another one: volume.ErrIdentity.
func (inv *Inventory) releasing(ctx context.Context, bd *v1alpha1.BlockDevice) (*v1alpha1.BlockDeviceContent, error) {
	var recorded device.Content
	known := false
	if inv.opts.ContentOf != nil {
		recorded, known = inv.opts.ContentOf(string(bd.Spec.ClaimRef.UID))
	}
	found, err := inv.contentNow(ctx, bd.Name)
	switch {
	case err != nil && !known:
		inv.opts.Log.Info("what is on a disk that is released is not known, so its wipe cannot be held to it", "disk", bd.Name, "reason", err.Error())
		return nil, nil
	case err == nil && known:
		if err := recorded.Refute(found); err != nil {
			return nil, fmt.Errorf("it may be another disk: %w. If it is not, erase what is on it (wipefs --all, at the path that the BlockDevice has by then)", err)
		}
	case err == nil:
		recorded = found
	}
	return &v1alpha1.BlockDeviceContent{Type: recorded.Type, UUID: recorded.UUID}, nil
}

// contentNow is what is on a disk at this moment.
func (inv *Inventory) contentNow(ctx context.Context, diskName string) (device.Content, error) {
	d, _, err := inv.find(ctx, diskName)
	if err != nil {
		return device.Content{}, err
	}
	found, err := inv.examiner.probe(ctx, d)
	return device.ContentOf(found), err
}

// FinishWipe implements device.Registry.
func (inv *Inventory) FinishWipe(ctx context.Context, diskName, token string, clean bool, message string) error {
	_, err := inv.change(ctx, diskName, func(bd *v1alpha1.BlockDevice) (bool, error) {
		if token == "" || stateOf(bd) != device.StateReleased || bd.Status.Wipe == nil || bd.Status.Wipe.Token != token {
			return false, fmt.Errorf("finish the wipe of BlockDevice %s: no wipe with this token is open: %w", diskName, volume.ErrNotFound)
		}
		if !clean {
			setUsable(bd, no(v1alpha1.ReasonWipeFailed, "%s", message))
			return true, nil
		}
		f, err := inv.look(ctx, bd)
		if err != nil {
			return false, fmt.Errorf("finish the wipe of BlockDevice %s: %w", diskName, err)
		}
		inv.forgetContent(diskName)
		unclaim(bd)
		f.spec, f.status = bd.Spec, bd.Status
		f.content = &examination{blank: true, cryptoErase: bd.Status.CryptoErase} // as read back by the cleaner
		describe(bd, f, judge(f), inv.opts.MachineID, "")
		return true, nil
	})
	return err
}

// Released implements device.Registry.
func (inv *Inventory) Released(ctx context.Context) ([]device.ReleasedDisk, error) {
	objects, err := inv.complete(ctx)
	if err != nil {
		return nil, err
	}
	var released []device.ReleasedDisk
	for _, bd := range objects {
		if _, usurped := inv.usurped(bd.Name, bd); usurped || stateOf(bd) != device.StateReleased {
			continue
		}
		disk := device.ReleasedDisk{Name: bd.Name, SizeBytes: bd.Status.SizeBytes, Policy: volume.WipeNone, Owner: ownerOf(bd)}
		if bd.Status.Identity != nil {
			disk.IdentityScheme, disk.IdentityValue = bd.Status.Identity.Scheme, bd.Status.Identity.Value
		}
		if w := bd.Status.Wipe; w != nil {
			disk.Token, disk.Policy = w.Token, volume.WipePolicy(w.Policy)
		}
		released = append(released, disk)
	}
	return released, nil
}
