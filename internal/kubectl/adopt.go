// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
)

// adoptedPrefix + the UID of a left-over is the name of what it becomes: a volume whose name nobody
// had before, and the same one each time that it is asked for.
const adoptedPrefix = "adopted-"

// rawBlock is --fs-type of a volume that pods get as a block device.
const rawBlock = "none"

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

// adopt makes a left-over a volume of Berth again; or gives that up, as long as it has not become
// one. It is troubled when it refuses, or when the agent does, or does not answer.
func (p *plugin) adopt(ctx context.Context, what string) (bool, error) {
	plan, err := p.planAdoption(ctx, what)
	if err != nil {
		return false, err
	}
	if p.o.Withdraw {
		return p.giveUp(ctx, plan)
	}
	if plan.volume == nil {
		if err := p.refuseAdoption(ctx, plan); err != nil {
			return false, err
		}
	}
	if len(plan.Refusals) > 0 || !p.o.Yes {
		if len(plan.Refusals) == 0 {
			plan.Next = p.adoptCommand(plan) + " --yes"
		}
		return len(plan.Refusals) > 0, p.tellAdoption(plan)
	}
	if err := p.askForAdoption(ctx, plan); err != nil {
		return false, err
	}
	ready, err := p.awaitAdoption(ctx, plan)
	if err != nil {
		return false, err
	}
	if !ready {
		plan.Next = fmt.Sprintf("kubectl berth orphans adopt %s --withdraw --yes", plan.where())
		return true, p.tellAdoption(plan)
	}
	if err := p.makeAdopted(ctx, plan); err != nil {
		return false, err
	}
	plan.Adopted = true
	return false, p.tellAdoption(plan)
}

// adoptCommand is the same command once more.
func (p *plugin) adoptCommand(plan *adoptPlan) string {
	words := []string{"kubectl berth orphans adopt", plan.where()}
	for _, flag := range [][2]string{{"--fs-type", p.o.FSType}, {"--claim", plan.Claim}, {"--storage-class", plan.StorageClass}} {
		if flag[1] != "" {
			words = append(words, flag[0]+"="+flag[1])
		}
	}
	return strings.Join(words, " ")
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

// askForAdoption makes the LocalVolume, if it does not stand.
func (p *plugin) askForAdoption(ctx context.Context, plan *adoptPlan) error {
	if plan.volume != nil {
		return nil
	}
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: plan.Volume},
		Spec: berth.LocalVolumeSpec{
			NodeName: plan.Node, Mode: plan.mode, Pool: plan.set, VolumeMode: berth.VolumeFilesystem, SizeBytes: plan.LeftOver.SizeBytes, FSType: p.o.FSType,
			Adopt: &berth.Adoption{LeftOver: &berth.AdoptedLeftOver{UID: string(plan.LeftOver.UID), Identity: plan.LeftOver.Identity}},
		},
	}
	if p.o.FSType == rawBlock {
		lv.Spec.VolumeMode, lv.Spec.FSType = berth.VolumeBlock, ""
	}
	if c := plan.claim; c != nil {
		lv.Spec.ClaimRef = &berth.ClaimReference{Namespace: c.Namespace, Name: c.Name, UID: c.UID}
	}
	lv.Labels = provision.Labels(lv.Spec)
	if err := p.client.Create(ctx, lv); err != nil {
		return fmt.Errorf("make LocalVolume %s: %w", plan.Volume, err)
	}
	plan.read(lv)
	return nil
}

// awaitAdoption waits until the node has taken the left-over over.
func (p *plugin) awaitAdoption(ctx context.Context, plan *adoptPlan) (ready bool, err error) {
	look := func(ctx context.Context) (bool, error) {
		lv := &berth.LocalVolume{}
		if err := p.client.Get(ctx, client.ObjectKey{Name: plan.Volume}, lv); err != nil {
			return false, fmt.Errorf("read LocalVolume %s: %w", plan.Volume, err)
		}
		if !plan.isOf(lv) {
			return false, fmt.Errorf("LocalVolume %s was replaced meanwhile: %w", plan.Volume, errStopped)
		}
		plan.read(lv)
		c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady)
		ready = lv.DeletionTimestamp == nil && lv.Status.Capacity != nil && c != nil && c.Status == metav1.ConditionTrue
		return ready || c != nil && c.Status == metav1.ConditionFalse, nil
	}
	if done, err := look(ctx); done || err != nil || p.o.Wait <= 0 {
		return ready, err
	}
	err = wait.PollUntilContextTimeout(ctx, purgePoll, p.o.Wait, false, look)
	if wait.Interrupted(err) && ctx.Err() == nil {
		return false, nil
	}
	return ready, err
}

// makeAdopted makes the PersistentVolume, if it does not stand.
func (p *plugin) makeAdopted(ctx context.Context, plan *adoptPlan) error {
	pv := newVolume(plan.volume, *plan.volume.Status.Capacity)
	pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	pv.Spec.PersistentVolumeReclaimPolicy, pv.Spec.StorageClassName = corev1.PersistentVolumeReclaimRetain, plan.StorageClass
	if c := plan.claim; c != nil && len(c.Spec.AccessModes) > 0 {
		pv.Spec.AccessModes = c.Spec.AccessModes
	}
	if namespace, name, ok := strings.Cut(plan.Claim, "/"); ok {
		pv.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: name}
	}
	err := p.client.Create(ctx, pv)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("make PersistentVolume %s: %w", plan.Volume, err)
		}
		return nil
	}
	there := &corev1.PersistentVolume{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: plan.Volume}, there); err != nil {
		return fmt.Errorf("read PersistentVolume %s: %w", plan.Volume, err)
	}
	if there.Spec.CSI == nil || there.Spec.CSI.Driver != berth.DriverName || there.Spec.CSI.VolumeHandle != plan.Volume {
		return fmt.Errorf("%w: there is a PersistentVolume %s that is not of the volume of that name", errUsage, plan.Volume)
	}
	// It is as it was made, whatever is asked for now.
	plan.StorageClass, plan.Claim = there.Spec.StorageClassName, ""
	if ref := there.Spec.ClaimRef; ref != nil {
		plan.Claim = ref.Namespace + "/" + ref.Name
	}
	return nil
}

// giveUp takes the LocalVolume away, as long as it has not said that it has anything. Should it
// have by the time, it is another version of the object, and is not deleted.
func (p *plugin) giveUp(ctx context.Context, plan *adoptPlan) (bool, error) {
	switch lv := plan.volume; {
	case lv == nil:
		plan.refuse("nobody has asked to adopt it")
	case lv.Status.Capacity != nil || lv.Status.LVM != nil || lv.Status.Hostpath != nil || lv.Status.Device != nil:
		plan.refuse("it was adopted already, and is the LocalVolume %s: to delete that deletes its data", plan.Volume)
	}
	if len(plan.Refusals) > 0 {
		return true, p.tellAdoption(plan)
	}
	if !p.o.Yes {
		plan.Next = fmt.Sprintf("kubectl berth orphans adopt %s --withdraw --yes", plan.where())
		return false, p.tellAdoption(plan)
	}
	lv := plan.volume
	base := lv.DeepCopy()
	metav1.SetMetaDataAnnotation(&lv.ObjectMeta, allowDelete, "true")
	err := p.client.Patch(ctx, lv, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	if err == nil {
		uid, version := lv.UID, lv.ResourceVersion
		err = client.IgnoreNotFound(p.client.Delete(ctx, lv, client.Preconditions{UID: &uid, ResourceVersion: &version}))
		if err != nil {
			// It may have what it asked for by now.
			err = errors.Join(err, p.guardAgain(ctx, lv))
		}
	}
	switch {
	case apierrors.IsNotFound(err): // of the permission: it is gone already
	case apierrors.IsConflict(err):
		return false, fmt.Errorf("delete LocalVolume %s: it has changed meanwhile, look at it again: %w", plan.Volume, errors.Join(errStopped, err))
	case err != nil:
		return false, fmt.Errorf("delete LocalVolume %s: %w", plan.Volume, err)
	}
	plan.Asked = false
	return false, p.tellAdoption(plan)
}

func (p *plugin) tellAdoption(plan *adoptPlan) error {
	if p.o.Output == "json" {
		return p.json(plan)
	}
	plan.print(p.out, p.o.Yes, p.o.Withdraw)
	return nil
}

// print says it to people.
func (l *adoptPlan) print(out io.Writer, changed, withdraw bool) {
	switch {
	case l.mode != berth.ModeDevice:
		fmt.Fprintf(out, "%s in pool %s of node %s\n", l.LeftOver.Kind, l.Pool, l.Node)
	case l.Disk == "":
		fmt.Fprintf(out, "%s on a whole disk of node %s\n", l.LeftOver.Kind, l.Node)
	default:
		fmt.Fprintf(out, "%s on the whole disk %s of node %s\n", l.LeftOver.Kind, l.Disk, l.Node)
	}
	for _, line := range [][2]string{
		{"UID", string(l.LeftOver.UID)},
		{"Volume", l.LeftOver.Name},
		{"Claim", l.LeftOver.Claim},
		{"Place", l.LeftOver.Location},
		{"Size", bytes(l.LeftOver.SizeBytes)},
		{"Identity", l.LeftOver.Identity},
	} {
		fmt.Fprintf(out, "  %-9s %s\n", line[0], orNone(line[1]))
	}
	fmt.Fprintf(out, "\nIt becomes LocalVolume and PersistentVolume %s, of StorageClass %q, reclaim policy Retain, for %s.\n",
		l.Volume, l.StorageClass, forClaim(l.Claim))
	if l.Message != "" {
		fmt.Fprintf(out, "The agent says: %s\n", l.Message)
	}
	switch {
	case len(l.Refusals) > 0:
		fmt.Fprintln(out, "\nNothing was changed:")
		for _, refusal := range l.Refusals {
			fmt.Fprintln(out, "  "+refusal)
		}
		return
	case l.Adopted:
		fmt.Fprint(out, "\nIt is a volume of Berth again. ", useBy(l), "\n")
	case !changed:
		fmt.Fprintln(out, "\nNothing was changed.")
	case withdraw:
		fmt.Fprintln(out, "\nIt is not asked for any more, and nothing of it was changed.")
	case l.Message == "":
		fmt.Fprintf(out, "\nIt is asked for, and the agent of node %s has not answered yet: run the same command again.\n", l.Node)
	default:
		fmt.Fprintln(out, "\nIt is asked for, and not done. The agent tries again; run the same command again to go on, or withdraw it.")
	}
	if l.Next != "" {
		fmt.Fprintf(out, "\nNext:\n  %s\n", l.Next)
	}
}

func forClaim(claim string) string {
	if claim == "" {
		return "whichever claim names it (volumeName)"
	}
	return "claim " + claim
}

// useBy says how a pod gets it.
func useBy(l *adoptPlan) string {
	switch {
	case l.claim != nil:
		return fmt.Sprintf("Claim %s gets it.", l.Claim)
	case l.Claim != "":
		return fmt.Sprintf("Make claim %s with storageClassName: %q and volumeName: %s.", l.Claim, l.StorageClass, l.Volume)
	}
	return fmt.Sprintf("Make a claim with storageClassName: %q and volumeName: %s.", l.StorageClass, l.Volume)
}
