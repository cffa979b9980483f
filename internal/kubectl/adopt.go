// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
