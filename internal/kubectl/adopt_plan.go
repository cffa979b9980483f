// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// adoptPlan is what a left-over becomes, and how far that is.
type adoptPlan struct {
	Node string `json:"node"`
	// Pool is the object's name; empty of a whole disk.
	Pool string `json:"pool,omitempty"`
	// Disk is the BlockDevice's name, of a whole disk.
	Disk     string         `json:"disk,omitempty"`
	LeftOver berth.LeftOver `json:"leftOver"`
	// Volume is the name of the LocalVolume and of the PersistentVolume.
	Volume string `json:"volume"`
	// Claim that the PersistentVolume is for, as namespace/name; empty for any.
	Claim        string `json:"claim,omitempty"`
	StorageClass string `json:"storageClass"`
	// Refusals are why it is not asked for.
	Refusals []string `json:"refusals,omitempty"`
	// Asked is true when the LocalVolume stands, and Adopted when it has the left-over and there is
	// a PersistentVolume for it.
	Asked   bool `json:"asked"`
	Adopted bool `json:"adopted"`
	// Message is what the agent says of the LocalVolume; empty before it has said anything.
	Message string `json:"message,omitempty"`
	// Next is the command that comes next; empty when there is none.
	Next string `json:"next,omitempty"`

	set    string // the PoolSet
	mode   berth.Mode
	disk   *berth.BlockDevice
	purged bool // somebody has asked to purge it
	volume *berth.LocalVolume
	claim  *corev1.PersistentVolumeClaim
}

func (l *adoptPlan) refuse(format string, args ...any) {
	l.Refusals = append(l.Refusals, fmt.Sprintf(format, args...))
}

// where is how the command line names it.
func (l *adoptPlan) where() string {
	if l.mode == berth.ModeDevice {
		return l.Node + "/" + cmp.Or(l.Disk, string(l.LeftOver.UID))
	}
	return l.Node + "/" + l.Pool + "/" + string(l.LeftOver.UID)
}

// planAdoption finds the left-over, or what has become of it.
func (p *plugin) planAdoption(ctx context.Context, what string) (*adoptPlan, error) {
	find := p.findInPool
	if _, _, isDisk := splitDisk(what); isDisk {
		find = p.findDisk
	}
	plan, missing, err := find(ctx, what)
	if err != nil {
		return nil, err
	}
	plan.StorageClass, plan.Volume = p.o.StorageClass, adoptedPrefix+string(plan.LeftOver.UID)
	lv := &berth.LocalVolume{}
	switch getErr := p.client.Get(ctx, client.ObjectKey{Name: plan.Volume}, lv); {
	case apierrors.IsNotFound(getErr):
		if missing != nil {
			return nil, missing
		}
	case getErr != nil:
		return nil, fmt.Errorf("read LocalVolume %s: %w", plan.Volume, getErr)
	case !plan.isOf(lv):
		return nil, fmt.Errorf("%w: there is a LocalVolume %s that is not of this left-over", errUsage, plan.Volume)
	default:
		plan.read(lv)
	}
	return plan, p.readClaim(ctx, plan)
}

// findInPool finds what is left over in a pool. missing says that there is nothing of that name, or not
// any more: it is none when it was adopted.
func (p *plugin) findInPool(ctx context.Context, what string) (plan *adoptPlan, missing, err error) {
	node, poolName, name, err := splitLeftOver(what)
	if err != nil {
		return nil, nil, err
	}
	pool, err := p.poolOf(ctx, node, poolName)
	if err != nil {
		return nil, nil, err
	}
	plan = &adoptPlan{Node: node, Pool: pool.Name, set: pool.Spec.PoolSetName, mode: berth.Mode(pool.Spec.Kind)}
	if plan.LeftOver, missing = leftOverOf(pool, name); missing != nil {
		plan.LeftOver = berth.LeftOver{Kind: berth.LeftOverVolume, UID: types.UID(name)}
	}
	plan.purged = isAsked(pool.Spec.Purge, plan.LeftOver.UID)
	return plan, missing, nil
}

// findDisk finds a whole disk by its BlockDevice, or by the UID of the volume that holds it, or held it
// before it was adopted.
func (p *plugin) findDisk(ctx context.Context, what string) (plan *adoptPlan, missing, err error) {
	node, name, _ := splitDisk(what)
	plan = &adoptPlan{Node: node, mode: berth.ModeDevice, LeftOver: berth.LeftOver{Kind: berth.LeftOverVolume, UID: types.UID(name)}}
	d, err := p.diskOf(ctx, node, name)
	if errors.Is(err, errUsage) {
		return plan, err, nil
	}
	if err != nil {
		return nil, nil, err
	}
	plan.Disk, plan.disk, plan.LeftOver = d.Name, d, leftOverOnDisk(d)
	if ref := d.Spec.ClaimRef; ref != nil {
		lv := &berth.LocalVolume{}
		err := p.client.Get(ctx, client.ObjectKey{Name: ref.Name}, lv)
		switch adopted := lv.Spec.Adopt; {
		case err != nil && !apierrors.IsNotFound(err):
			return nil, nil, fmt.Errorf("read LocalVolume %s: %w", ref.Name, err)
		case err == nil && lv.UID == ref.UID && adopted != nil && adopted.LeftOver != nil && lv.Name == adoptedPrefix+adopted.LeftOver.UID:
			// It has the disk already.
			plan.LeftOver.UID, plan.LeftOver.Name = types.UID(adopted.LeftOver.UID), ""
		}
	}
	plan.purged = isAsked(d.Spec.Purge, plan.LeftOver.UID)
	return plan, nil, nil
}

func isAsked(requests []berth.PurgeRequest, uid types.UID) bool {
	return slices.ContainsFunc(requests, func(r berth.PurgeRequest) bool { return r.UID == string(uid) })
}

// isOf reports whether a LocalVolume asks for the left-over.
func (l *adoptPlan) isOf(lv *berth.LocalVolume) bool {
	a := lv.Spec.Adopt
	return a != nil && a.LeftOver != nil && a.LeftOver.UID == string(l.LeftOver.UID) && lv.Spec.NodeName == l.Node && lv.Spec.Pool == l.set && lv.Spec.Mode == l.mode
}

// read takes over what stands of it.
func (l *adoptPlan) read(lv *berth.LocalVolume) {
	l.volume, l.Asked, l.Message = lv, true, ""
	l.LeftOver.Identity = lv.Spec.Adopt.LeftOver.Identity
	if c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady); c != nil {
		l.Message = fmt.Sprintf("%s: %s", c.Reason, c.Message)
	}
}

// readClaim finds the claim of --claim, which need not be there yet.
func (p *plugin) readClaim(ctx context.Context, plan *adoptPlan) error {
	if p.o.Claim == "" {
		return nil
	}
	namespace, name, ok := strings.Cut(p.o.Claim, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("%w: --claim is %q; it must be NAMESPACE/NAME", errUsage, p.o.Claim)
	}
	plan.Claim = p.o.Claim
	claim := &corev1.PersistentVolumeClaim{}
	err := p.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, claim)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read claim %s: %w", p.o.Claim, err)
	}
	plan.claim = claim
	return nil
}

// refuseAdoption says what keeps it from being asked for, as far as objects tell.
func (p *plugin) refuseAdoption(ctx context.Context, plan *adoptPlan) error {
	l := plan.LeftOver
	switch {
	case l.Kind == berth.LeftOverDirectory:
		plan.refuse("it has no mark of Berth, which touches nothing that it has not made: move it out of the root of the pool, and adopt it by spec.adopt.directory (docs/guides/move-from-local-path.md)")
	case l.Kind == berth.LeftOverSnapshot:
		plan.refuse("a snapshot does not become a volume: copy what is in it on the node")
	case l.Kind == berth.LeftOverRecord:
		plan.refuse("it is an entry of the node's ledger, for which there is no storage")
	default:
		plan.Refusals = append(plan.Refusals, whyKept(l)...)
	}
	if plan.disk != nil {
		has, err := p.whoHas(ctx, plan.disk)
		if err != nil {
			return err
		}
		plan.Refusals = append(append(plan.Refusals, whyDiskKept(plan.disk)...), has...)
	}
	if plan.purged {
		plan.refuse("somebody has asked to purge it: kubectl berth orphans purge %s --withdraw --yes", plan.where())
	}
	if err := p.checkFSType(plan); err != nil {
		return err
	}
	bound, err := p.claimsOf(ctx, l.Name)
	if err != nil {
		return err
	}
	for _, claim := range bound {
		plan.refuse("claim %s is bound to a PersistentVolume %s, which was the name of the left-over: delete the claim, and make it anew when this is done", claim, l.Name)
	}
	if c := plan.claim; c != nil {
		class := ""
		if c.Spec.StorageClassName != nil {
			class = *c.Spec.StorageClassName
		}
		switch request := c.Spec.Resources.Requests.Storage().Value(); {
		case c.Spec.VolumeName != "" && c.Spec.VolumeName != plan.Volume:
			plan.refuse("claim %s has PersistentVolume %s", plan.Claim, c.Spec.VolumeName)
		case class != plan.StorageClass:
			plan.refuse("claim %s is of the StorageClass %q: give --storage-class=%s, or make the claim anew", plan.Claim, class, class)
		case request > l.SizeBytes:
			plan.refuse("claim %s asks for %s, and the left-over has %s", plan.Claim, bytes(request), bytes(l.SizeBytes))
		}
	}
	return p.refuseWanted(ctx, plan)
}

func (p *plugin) checkFSType(plan *adoptPlan) error {
	types := []string{"ext4", "xfs", "btrfs", rawBlock}
	switch {
	case plan.mode == berth.ModeHostpath && p.o.FSType != "":
		return fmt.Errorf("%w: --fs-type is for logical volumes and disks, and pool %s has directories", errUsage, plan.Pool)
	case plan.mode != berth.ModeHostpath && !slices.Contains(types, p.o.FSType):
		return fmt.Errorf("%w: --fs-type is %q; say what is on the logical volume or the disk, one of %s; the node looks whether it is so", errUsage, p.o.FSType, strings.Join(types, ", "))
	}
	return nil
}

// refuseWanted looks for PersistentVolumes that lead to it. The agent does so again.
func (p *plugin) refuseWanted(ctx context.Context, plan *adoptPlan) error {
	if plan.LeftOver.Name == "" {
		return nil
	}
	pvs := &corev1.PersistentVolumeList{}
	if err := p.list(ctx, pvs, "PersistentVolumes"); err != nil {
		return err
	}
	for i := range pvs.Items {
		if csi := pvs.Items[i].Spec.CSI; csi != nil && csi.Driver == berth.DriverName && csi.VolumeHandle == plan.LeftOver.Name {
			plan.refuse("PersistentVolume %s leads to it: kubectl delete pv %s, which deletes no data as long as it has no LocalVolume", pvs.Items[i].Name, pvs.Items[i].Name)
		}
	}
	return nil
}
