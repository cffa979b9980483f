// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

var _ device.Registry = (*Inventory)(nil)

// Candidates implements device.Registry.
func (inv *Inventory) Candidates(ctx context.Context) ([]volume.Disk, error) {
	if err := inv.waitReady(ctx); err != nil {
		return nil, err
	}
	var candidates []volume.Disk
	for _, bd := range inv.objects() {
		if !claimable(bd) {
			continue
		}
		disk := asDisk(bd)
		disk.Controller = inv.controller(bd.Name)
		candidates = append(candidates, disk)
	}
	return candidates, nil
}

// controller of a disk, as far as it is in the mirror.
func (inv *Inventory) controller(name string) string {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	for _, kernelName := range inv.index[name] {
		if d := inv.devices[kernelName]; d != nil {
			return d.Controller()
		}
	}
	return ""
}

// claimable reports whether an object's disk may be claimed by somebody who takes
// disks of weak identity too.
func claimable(bd *v1alpha1.BlockDevice) bool {
	c := condition(&bd.Status)
	return c != nil && (c.Reason == v1alpha1.ReasonBlank || c.Reason == v1alpha1.ReasonWeakIdentity) &&
		bd.Spec.ClaimRef == nil && bd.Spec.Reserved == "" && bd.DeletionTimestamp == nil &&
		bd.Status.ClaimState == v1alpha1.ClaimStateUnclaimed && bd.Status.State == v1alpha1.DeviceActive
}

func asDisk(bd *v1alpha1.BlockDevice) volume.Disk {
	s := &bd.Status
	return volume.Disk{
		Name: bd.Name, Path: s.Path, Links: slices.Clone(s.DevLinks), SizeBytes: s.SizeBytes, Model: s.Model, Serial: s.Serial,
		Transport: s.Transport, Rotational: s.Rotational, Weak: s.Identity != nil && s.Identity.Quality == v1alpha1.IdentityWeak,
		CryptoErase: s.CryptoErase,
	}
}

// objects are the present copies of all objects, sorted by name. They must not be
// changed.
func (inv *Inventory) objects() []*v1alpha1.BlockDevice {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	objects := make([]*v1alpha1.BlockDevice, 0, len(inv.disks))
	for _, d := range inv.disks {
		if d.object != nil {
			objects = append(objects, d.object)
		}
	}
	slices.SortFunc(objects, func(a, b *v1alpha1.BlockDevice) int { return strings.Compare(a.Name, b.Name) })
	return objects
}

// complete returns all objects after those whose last write ended in doubt were
// read again.
func (inv *Inventory) complete(ctx context.Context) ([]*v1alpha1.BlockDevice, error) {
	if err := inv.waitReady(ctx); err != nil {
		return nil, err
	}
	inv.mu.Lock()
	var stale []string
	for name, d := range inv.disks {
		if d.stale {
			stale = append(stale, name)
		}
	}
	inv.mu.Unlock()
	for _, name := range stale {
		if _, err := inv.reload(ctx, name); err != nil {
			return nil, err
		}
	}
	return inv.objects(), nil
}

// Claims implements device.Registry.
func (inv *Inventory) Claims(ctx context.Context) ([]device.Claimed, error) {
	objects, err := inv.complete(ctx)
	if err != nil {
		return nil, err
	}
	var claims []device.Claimed
	for _, bd := range objects {
		if stateOf(bd) != device.StateClaimed {
			continue
		}
		claimed, err := inv.located(ctx, bd)
		if err != nil {
			return nil, err
		}
		claims = append(claims, claimed)
	}
	return claims, nil
}

// located is a claim with the path that the disk has at this moment. What stands
// in the object may be from before a reboot, and that path another disk's by now.
func (inv *Inventory) located(ctx context.Context, bd *v1alpha1.BlockDevice) (device.Claimed, error) {
	claimed := asClaimed(bd)
	claimed.Path = ""
	inv.mu.Lock()
	kernelNames := inv.index[bd.Name]
	inv.mu.Unlock()
	if len(kernelNames) != 1 {
		return claimed, nil // gone, or two that cannot be told apart
	}
	d, err := inv.sysfs.Device(ctx, kernelNames[0])
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return claimed, nil
	case err == nil:
		err = d.Err
	}
	if err != nil {
		return device.Claimed{}, fmt.Errorf("locate BlockDevice %s: %w", bd.Name, err)
	}
	if block.Name(inv.opts.NodeName, block.Identify(&d)) == bd.Name {
		claimed.Path, claimed.Controller = d.Path, d.Controller()
	}
	return claimed, nil
}

// ClaimedBy implements device.Registry. Only a "no" costs a request.
func (inv *Inventory) ClaimedBy(ctx context.Context, ownerUID string) (device.Claimed, bool, error) {
	objects, err := inv.complete(ctx)
	if err != nil {
		return device.Claimed{}, false, err
	}
	for _, bd := range objects {
		if heldBy(bd, ownerUID) {
			claimed, err := inv.located(ctx, bd)
			return claimed, err == nil, err
		}
	}
	live, err := inv.liveList(ctx)
	if err != nil {
		return device.Claimed{}, false, err
	}
	for i := range live {
		if heldBy(&live[i], ownerUID) {
			inv.ObserveObject(&live[i])
			claimed, err := inv.located(ctx, &live[i])
			return claimed, err == nil, err
		}
	}
	return device.Claimed{}, false, nil
}

func heldBy(bd *v1alpha1.BlockDevice, ownerUID string) bool {
	return stateOf(bd) == device.StateClaimed && string(bd.Spec.ClaimRef.UID) == ownerUID
}

// stateOf reads the state of a claim. A claimRef without a state is a claim: it
// may be by another hand, and is nobody's to take.
func stateOf(bd *v1alpha1.BlockDevice) device.State {
	switch {
	case bd.Status.ClaimState == v1alpha1.ClaimStateReleased:
		return device.StateReleased
	case bd.Spec.ClaimRef != nil:
		return device.StateClaimed
	}
	return device.StateUnclaimed
}

// asClaimed is a claim as the object has it; see located for the path.
func asClaimed(bd *v1alpha1.BlockDevice) device.Claimed {
	c := device.Claimed{Name: bd.Name, SizeBytes: bd.Status.SizeBytes, State: stateOf(bd), Owner: ownerOf(bd)}
	if bd.Status.Identity != nil {
		c.IdentityScheme, c.IdentityValue = bd.Status.Identity.Scheme, bd.Status.Identity.Value
	}
	return c
}

func ownerOf(bd *v1alpha1.BlockDevice) device.Owner {
	if bd.Spec.ClaimRef == nil {
		return device.Owner{}
	}
	return device.Owner{UID: string(bd.Spec.ClaimRef.UID), Name: bd.Spec.ClaimRef.Name, Kind: bd.Spec.ClaimRef.Kind}
}

// Claim implements device.Registry. The identity, the uses and the filters are
// judged again on what the kernel says now. For a volume the content is not read:
// the claimant has the disk open exclusively and locked, and has read it itself.
// For a pool it is.
func (inv *Inventory) Claim(ctx context.Context, diskName string, owner device.Owner) (device.Claimed, error) {
	if owner.UID == "" || owner.Name == "" || owner.Kind != device.OwnerPool && owner.Kind != device.OwnerVolume {
		return device.Claimed{}, fmt.Errorf("claim BlockDevice %s for %+v: %w", diskName, owner, volume.ErrInvalid)
	}
	proof := provenByClaimant
	if owner.Kind == device.OwnerPool {
		proof = readNow
	}
	return inv.give(ctx, diskName, owner, proof)
}

// Adopt implements device.Registry.
func (inv *Inventory) Adopt(ctx context.Context, diskName string, owner device.Owner) (device.Claimed, error) {
	if owner.UID == "" || owner.Name == "" || owner.Kind != device.OwnerVolume {
		return device.Claimed{}, fmt.Errorf("adopt BlockDevice %s for %+v: %w", diskName, owner, volume.ErrInvalid)
	}
	return inv.give(ctx, diskName, owner, notAsked)
}

// HandOver implements device.Registry. What keeps disks from being claimed anew, filters and the
// like, does not keep it: it is Berth's, and stays that.
func (inv *Inventory) HandOver(ctx context.Context, diskName, fromUID string, owner device.Owner) (device.Claimed, error) {
	if owner.UID == "" || owner.Name == "" || owner.Kind != device.OwnerVolume || fromUID == "" || fromUID == owner.UID {
		return device.Claimed{}, fmt.Errorf("hand BlockDevice %s over from %q to %+v: %w", diskName, fromUID, owner, volume.ErrInvalid)
	}
	written, err := inv.change(ctx, diskName, func(bd *v1alpha1.BlockDevice) (bool, error) {
		if err := inv.refuseUsurped(bd, owner.UID); err != nil {
			return false, fmt.Errorf("hand over: %w", err)
		}
		switch holder := ownerOf(bd); {
		case heldBy(bd, owner.UID):
			return false, nil
		case !heldBy(bd, fromUID) || holder.Kind != device.OwnerVolume:
			return false, fmt.Errorf("hand BlockDevice %s over: it is %s, by %s %s (%s): %w", bd.Name, stateOf(bd), holder.Kind, holder.Name, holder.UID, volume.ErrBusy)
		}
		bd.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: owner.Kind, Name: owner.Name, UID: types.UID(owner.UID)}
		bd.Status.ClaimState, bd.Status.Wipe = v1alpha1.ClaimStateClaimed, nil
		controllerutil.AddFinalizer(bd, v1alpha1.AgentFinalizer)
		return true, nil
	})
	if err != nil {
		return device.Claimed{}, err
	}
	return inv.located(ctx, written)
}

func (inv *Inventory) give(ctx context.Context, diskName string, owner device.Owner, proof contentProof) (device.Claimed, error) {
	written, err := inv.change(ctx, diskName, func(bd *v1alpha1.BlockDevice) (bool, error) {
		return inv.claim(ctx, bd, owner, proof)
	})
	if err != nil {
		return device.Claimed{}, err
	}
	return inv.located(ctx, written)
}

// contentProof says how it is known that a disk's content does not forbid a claim.
type contentProof int

const (
	// provenByClaimant: the disk was blank when last looked at, and its claimant has
	// it open, locked and seen to be blank.
	provenByClaimant contentProof = iota
	// readNow: the disk is to be read, and must be blank.
	readNow
	// notAsked: the disk is claimed for its content.
	notAsked
)

// ClaimForPool gives a disk to a pool, as Claim does, and reads the disk as well:
// it must be blank now. volume.ErrBusy when somebody has it locked. A disk that may
// not be claimed is volume.ErrInvalid and, where one of them says more,
// volume.ErrNotBlank, ErrInUse, ErrIdentity or ErrNotFound.
func (inv *Inventory) ClaimForPool(ctx context.Context, diskName string, pool *v1alpha1.Pool) (device.Claimed, error) {
	return inv.Claim(ctx, diskName, device.Owner{UID: string(pool.UID), Name: pool.Name, Kind: device.OwnerPool})
}

// claim edits an object into one that the owner holds. It reports false when it
// holds the disk already.
func (inv *Inventory) claim(ctx context.Context, bd *v1alpha1.BlockDevice, owner device.Owner, proof contentProof) (bool, error) {
	if err := inv.refuseUsurped(bd, owner.UID); err != nil {
		return false, fmt.Errorf("claim: %w", err)
	}
	switch state := stateOf(bd); {
	case heldBy(bd, owner.UID):
		return false, nil
	case state == device.StateReleased && proof == notAsked && bd.Status.Wipe != nil && bd.Status.Wipe.Policy == v1alpha1.WipeNone:
		// Its content was to stay, and is what it is wanted for.
	case state != device.StateUnclaimed:
		holder := ownerOf(bd)
		return false, fmt.Errorf("claim BlockDevice %s: it is %s, by %s %s: %w", bd.Name, state, holder.Kind, holder.Name, volume.ErrBusy)
	case bd.DeletionTimestamp != nil:
		return false, fmt.Errorf("claim BlockDevice %s: it is being deleted: %w", bd.Name, volume.ErrInvalid)
	}
	f, err := inv.judgeNow(ctx, bd, proof)
	if err != nil {
		return false, err
	}
	if err := inv.requireHere(ctx, bd.Name, f); err != nil {
		return false, fmt.Errorf("claim BlockDevice %s: %w", bd.Name, err)
	}
	bd.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: owner.Kind, Name: owner.Name, UID: types.UID(owner.UID)}
	bd.Status.ClaimState, bd.Status.Wipe = v1alpha1.ClaimStateClaimed, nil
	// kubectl delete must not make Berth forget who holds the disk.
	controllerutil.AddFinalizer(bd, v1alpha1.AgentFinalizer)
	f.spec, f.status = bd.Spec, bd.Status
	describe(bd, f, judge(f), inv.opts.MachineID, "")
	return true, nil
}

// judgeNow judges a disk that is to be claimed by what the kernel shows at this
// moment, and refuses it unless it may be claimed.
func (inv *Inventory) judgeNow(ctx context.Context, bd *v1alpha1.BlockDevice, proof contentProof) (*facts, error) {
	f, err := inv.look(ctx, bd)
	if err != nil {
		return nil, fmt.Errorf("claim BlockDevice %s: %w", bd.Name, err)
	}
	v := judge(f)
	if v.needsContent && proof == notAsked {
		switch {
		case bd.Spec.Reserved != "": // of a released disk judge does not ask
			return nil, fmt.Errorf("claim BlockDevice %s: reserved: %s: %w", bd.Name, bd.Spec.Reserved, volume.ErrInvalid)
		case f.identity.Weak:
			return nil, fmt.Errorf("claim BlockDevice %s: only its place (%s) tells it from another disk: %w", bd.Name, f.identity.Value, volume.ErrInvalid)
		}
		return f, nil
	}
	if v.needsContent {
		switch {
		case proof == readNow:
			f.content = inv.examine(ctx, bd.Name, f.devices[0], true)
			if errors.Is(f.content.err, volume.ErrBusy) {
				return nil, fmt.Errorf("claim BlockDevice %s: %w", bd.Name, f.content.err)
			}
		case claimable(bd):
			f.content = &examination{blank: true} // the claimant's own proof
		default:
			c := condition(&bd.Status)
			if c == nil {
				return nil, fmt.Errorf("claim BlockDevice %s: it was not examined yet: %w", bd.Name, volume.ErrInvalid)
			}
			return nil, fmt.Errorf("claim BlockDevice %s: %s: %w", bd.Name, c.Message, volume.ErrInvalid)
		}
		v = judge(f)
	}
	if !v.claimable() {
		return nil, fmt.Errorf("claim BlockDevice %s: %s: %w", bd.Name, v.message, refusal(v.reason))
	}
	return f, nil
}

// refusal is the sentinel for a reason why a disk is not to be had.
func refusal(reason string) error {
	switch reason {
	case v1alpha1.ReasonHasContent, v1alpha1.ReasonPartitioned:
		return fmt.Errorf("%w: %w", volume.ErrInvalid, volume.ErrNotBlank)
	case v1alpha1.ReasonInUse:
		return fmt.Errorf("%w: %w", volume.ErrInvalid, volume.ErrInUse)
	case v1alpha1.ReasonConflicted:
		return fmt.Errorf("%w: %w", volume.ErrInvalid, volume.ErrIdentity)
	case v1alpha1.ReasonGone:
		return fmt.Errorf("%w: %w", volume.ErrInvalid, volume.ErrNotFound)
	}
	return volume.ErrInvalid
}

// Abandon implements device.Registry.
func (inv *Inventory) Abandon(ctx context.Context, diskName, ownerUID string) error {
	_, err := inv.change(ctx, diskName, func(bd *v1alpha1.BlockDevice) (bool, error) {
		if !heldBy(bd, ownerUID) {
			return false, nil
		}
		unclaim(bd)
		inv.forgetContent(diskName)
		setUsable(bd, no(v1alpha1.ReasonHasContent, "a claim on it was abandoned before anything was written; it is looked at again"))
		return true, nil
	})
	return err
}

// forgetContent has a disk read anew before anything is said of its content.
func (inv *Inventory) forgetContent(name string) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	inv.disk(name).content = nil
}

// unclaim makes a disk nobody's.
func unclaim(bd *v1alpha1.BlockDevice) {
	bd.Spec.ClaimRef = nil
	bd.Status.ClaimState = v1alpha1.ClaimStateUnclaimed
	bd.Status.Wipe = nil
	controllerutil.RemoveFinalizer(bd, v1alpha1.AgentFinalizer)
}
