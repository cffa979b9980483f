// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

func (p *plugin) whyClaim(ctx context.Context, name string) (*answer, error) {
	key := client.ObjectKey{Namespace: p.o.Namespace, Name: name}
	if namespace, inner, ok := strings.Cut(name, "/"); ok {
		key = client.ObjectKey{Namespace: namespace, Name: inner}
	}
	a := &answer{About: "pvc/" + key.Namespace + "/" + key.Name}
	claim := &corev1.PersistentVolumeClaim{}
	if err := p.client.Get(ctx, key, claim); apierrors.IsNotFound(err) {
		a.blame("There is no claim %s in namespace %s.", key.Name, key.Namespace)
		return a, nil
	} else if err != nil {
		return nil, fmt.Errorf("read claim %s: %w", key, err)
	}
	pods := &corev1.PodList{}
	if err := p.list(ctx, pods, "pods", client.InNamespace(key.Namespace)); err != nil {
		return nil, err
	}
	users := usersOf(pods, key.Namespace+"/"+key.Name)
	if claim.DeletionTimestamp != nil {
		a.sayDeleting(users)
		return a, nil
	}
	local, err := p.volumeOf(ctx, claim)
	if err != nil {
		return nil, err
	}
	if claim.Spec.VolumeName != "" {
		return a, p.whyBound(ctx, a, claim, local, users)
	}
	return a, p.whyPending(ctx, a, claim, local, users)
}

// usersOf returns the pods that use a claim and have not ended.
func usersOf(pods *corev1.PodList, claim string) (users []*corev1.Pod) {
	names := podsByClaim(pods)[claim]
	for i := range pods.Items {
		if slices.Contains(names, pods.Items[i].Name) {
			users = append(users, &pods.Items[i])
		}
	}
	return users
}

func (a *answer) sayDeleting(users []*corev1.Pod) {
	if len(users) == 0 {
		a.say("Its deletion was asked for, and goes on as soon as Kubernetes sees that no pod uses it.")
		return
	}
	names := make([]string, len(users))
	for i, pod := range users {
		names[i] = pod.Name
	}
	a.blame("Its deletion was asked for, and waits because pods use it: %s. Delete them first.", strings.Join(names, ", "))
}

// volumeOf returns the LocalVolume that was made for a claim, or nil.
func (p *plugin) volumeOf(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*berth.LocalVolume, error) {
	volumes := &berth.LocalVolumeList{}
	if err := p.list(ctx, volumes, "LocalVolumes"); err != nil {
		return nil, err
	}
	for i := range volumes.Items {
		if ref := volumes.Items[i].Spec.ClaimRef; ref != nil && ref.UID == claim.UID {
			return &volumes.Items[i], nil
		}
	}
	return nil, nil
}

// whyBound explains a claim that has its volume.
func (p *plugin) whyBound(ctx context.Context, a *answer, claim *corev1.PersistentVolumeClaim, local *berth.LocalVolume, users []*corev1.Pod) error {
	pv := &corev1.PersistentVolume{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv); apierrors.IsNotFound(err) {
		a.blame("It is bound to PersistentVolume %s, which is gone (%s). Its data may still be on the node: see kubectl get localvolumes.", claim.Spec.VolumeName, claim.Status.Phase)
		return nil
	} else if err != nil {
		return fmt.Errorf("read PersistentVolume %s: %w", claim.Spec.VolumeName, err)
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != berth.DriverName {
		a.say("It is bound to PersistentVolume %s, which is not Berth's.", pv.Name)
		return nil
	}
	if local == nil {
		local = &berth.LocalVolume{}
		if err := p.client.Get(ctx, client.ObjectKey{Name: pv.Spec.CSI.VolumeHandle}, local); apierrors.IsNotFound(err) {
			a.blame("It is bound to PersistentVolume %s, and the LocalVolume %s of that is gone. Restore it from a backup of the API server; the data are on the node as long as nobody removes them.", pv.Name, pv.Spec.CSI.VolumeHandle)
			return nil
		} else if err != nil {
			return fmt.Errorf("read LocalVolume %s: %w", pv.Spec.CSI.VolumeHandle, err)
		}
	}
	if err := p.whyVolume(ctx, a, local); err != nil {
		return err
	}
	if err := p.whyChange(ctx, a, claim); err != nil {
		return err
	}
	if len(users) == 0 {
		a.say("No pod uses it.")
	}
	for _, pod := range users {
		if err := p.whyPod(ctx, a, pod, local.Spec.NodeName); err != nil {
			return err
		}
	}
	return nil
}

// whyVolume says how the volume is.
func (p *plugin) whyVolume(ctx context.Context, a *answer, local *berth.LocalVolume) error {
	where := fmt.Sprintf("%s on node %s (mode %s%s)", bytes(local.Spec.SizeBytes), local.Spec.NodeName, local.Spec.Mode, poolOf(local))
	ready := meta.FindStatusCondition(local.Status.Conditions, berth.LocalVolumeReady)
	switch {
	case ready == nil:
		a.blame("Its volume of %s is being made: the node's agent has not answered yet.", where)
	case ready.Status != metav1.ConditionTrue:
		a.blame("Its volume of %s is not ready, %s: %s", where, ready.Reason, ready.Message)
	default:
		a.say("Its volume of %s is ready.", where)
		a.sayUnwell(local)
		return nil
	}
	return p.blameNode(ctx, a, local.Spec.NodeName)
}

// blameNode adds what is wrong with a node that must act.
func (p *plugin) blameNode(ctx context.Context, a *answer, node string) error {
	found, err := p.whyNode(ctx, node)
	if err != nil {
		return err
	}
	if found.Troubled {
		a.blame("Node %s: %s", node, strings.Join(found.Lines, " "))
	}
	return nil
}

func poolOf(local *berth.LocalVolume) string {
	if local.Spec.Pool == "" {
		return ""
	}
	return ", pool " + local.Spec.Pool
}

// whyPod says how a pod that uses a claim is.
func (p *plugin) whyPod(ctx context.Context, a *answer, pod *corev1.Pod, volumeNode string) error {
	ready, why := podReady(pod)
	switch {
	case pod.Spec.NodeName == "":
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue && c.Message != "" {
				why = c.Message
			}
		}
		a.blame("Pod %s has no node yet: %s", pod.Name, why)
		if volumeNode != "" {
			a.say("It can only run on node %s, where the volume is.", volumeNode)
			return p.blameNode(ctx, a, volumeNode)
		}
	case ready:
		a.say("Pod %s uses it.", pod.Name)
	case pod.Status.Phase == corev1.PodRunning:
		a.say("Pod %s runs and is not ready: %s", pod.Name, why)
	default:
		a.blame("Pod %s does not run yet: %s", pod.Name, why)
		return p.sayWarnings(ctx, a, "Pod", pod)
	}
	return nil
}

// whyPending explains a claim that has no volume yet.
func (p *plugin) whyPending(ctx context.Context, a *answer, claim *corev1.PersistentVolumeClaim, local *berth.LocalVolume, users []*corev1.Pod) error {
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		a.blame("It names no StorageClass, and there is no default one: nobody makes a volume for it. Set spec.storageClassName.")
		return nil
	}
	class := &storagev1.StorageClass{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, class); apierrors.IsNotFound(err) {
		a.blame("Its StorageClass %q does not exist.", *claim.Spec.StorageClassName)
		return nil
	} else if err != nil {
		return fmt.Errorf("read StorageClass %s: %w", *claim.Spec.StorageClassName, err)
	}
	if class.Provisioner != berth.DriverName {
		a.say("Its StorageClass %q is of %s, not of Berth.", class.Name, class.Provisioner)
		return nil
	}
	text, err := p.judge(ctx, claim)
	if err != nil {
		return err
	}
	switch {
	case text != "":
		a.blame("%s", sentence(text))
	case local != nil:
		if err := p.whyVolume(ctx, a, local); err != nil {
			return err
		}
	case len(users) == 0 && waitsForPod(class):
		a.say("It waits for a pod: StorageClass %q has volumeBindingMode WaitForFirstConsumer, so that the volume is made where the pod can run. That is as it should be.", class.Name)
		return nil
	}
	for _, pod := range users {
		if err := p.whyPod(ctx, a, pod, ""); err != nil {
			return err
		}
	}
	if !a.Troubled {
		a.blame("The volume is being made.")
	}
	return p.sayWarnings(ctx, a, "PersistentVolumeClaim", claim)
}

func waitsForPod(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// sentence makes a sentence of a message.
func sentence(text string) string {
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

// mostWarnings are repeated of an object's events, the latest first.
const mostWarnings = 3

// sayWarnings repeats the latest warnings of an object that say something new.
func (p *plugin) sayWarnings(ctx context.Context, a *answer, kind string, of client.Object) error {
	events := &corev1.EventList{}
	if err := p.list(ctx, events, "events", client.InNamespace(of.GetNamespace())); err != nil {
		return err
	}
	var about []corev1.Event
	for _, e := range events.Items {
		if e.Type == corev1.EventTypeWarning && e.InvolvedObject.Kind == kind && e.InvolvedObject.UID == of.GetUID() {
			about = append(about, e)
		}
	}
	slices.SortFunc(about, func(x, y corev1.Event) int { return cmp.Compare(lastSeen(y).UnixNano(), lastSeen(x).UnixNano()) })
	said := strings.Join(a.Lines, "\n")
	for _, e := range about[:min(len(about), mostWarnings)] {
		if !strings.Contains(said, strings.TrimSuffix(sentence(e.Message), ".")) {
			a.say("Event %s: %s", e.Reason, e.Message)
		}
	}
	return nil
}

func lastSeen(e corev1.Event) metav1.Time {
	switch {
	case e.Series != nil:
		return metav1.NewTime(e.Series.LastObservedTime.Time)
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp
	case !e.EventTime.IsZero():
		return metav1.NewTime(e.EventTime.Time)
	}
	return e.CreationTimestamp
}
