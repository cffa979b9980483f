// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
)

// errStopped: a move cannot go on now. What was done stays, and the next run goes on from
// there.
var errStopped = errors.New("it stops here; run it again to go on")

// move moves one volume. Each step looks first whether it is done, so that a run that was cut
// short is taken up by the next one. The claim is gone before the directory moves: a pod that
// started in between would find an empty one in its place.
func (p *plugin) move(ctx context.Context, m *move) error {
	m.State = stateBegun
	for _, step := range []func(context.Context, *move) error{p.retain, p.removeClaim, p.makeLocalVolume, p.makeVolume, p.makeClaim, p.tellVolume} {
		err := step(ctx, m)
		m.Back = m.back()
		if errors.Is(err, errStopped) {
			m.refuse("%v", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("move PersistentVolume %s: %w", m.PersistentVolume, err)
		}
	}
	m.State, m.Message = stateMoved, fmt.Sprintf("claim %s has it", m.Claim)
	return nil
}

func (p *plugin) say(format string, args ...any) { fmt.Fprintf(p.errs, format+"\n", args...) }

// asNew is a claim as it can be created again.
func asNew(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	annotations := maps.Clone(claim.Annotations)
	maps.DeleteFunc(annotations, func(key, _ string) bool {
		return strings.HasPrefix(key, "pv.kubernetes.io/") || strings.HasPrefix(key, "volume.kubernetes.io/") || strings.HasPrefix(key, "volume.beta.kubernetes.io/") ||
			key == corev1.LastAppliedConfigAnnotation
	})
	return &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: claim.Name, Labels: claim.Labels, Annotations: annotations},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: claim.Spec.AccessModes, Resources: claim.Spec.Resources, VolumeName: claim.Spec.VolumeName,
			StorageClassName: claim.Spec.StorageClassName, VolumeMode: claim.Spec.VolumeMode,
		},
	}
}

// retain keeps the old provisioner from removing the directory, and writes down what the claim
// was. It believes what it reads back.
func (p *plugin) retain(ctx context.Context, m *move) error {
	pv := m.pv
	if pv.Annotations[importClaim] == "" || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		base := pv.DeepCopy()
		if pv.Annotations[importClaim] == "" {
			claim := m.claim.DeepCopy()
			claim.UID = ""
			text, err := json.Marshal(claim)
			if err != nil {
				return err
			}
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, importClaim, string(text))
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, importPolicy, string(m.policy))
		}
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		err := p.client.Patch(ctx, pv, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
		if apierrors.IsConflict(err) {
			return fmt.Errorf("PersistentVolume %s was changed meanwhile: %w", pv.Name, errStopped)
		}
		if err != nil {
			return fmt.Errorf("set its reclaim policy to Retain: %w", err)
		}
		p.say("%s: its reclaim policy is Retain.", m.PersistentVolume)
	}
	now := &corev1.PersistentVolume{}
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(pv), now); err != nil {
		return fmt.Errorf("read it again: %w", err)
	}
	if now.UID != pv.UID || now.DeletionTimestamp != nil || now.Annotations[importClaim] == "" || now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		return fmt.Errorf("read again, PersistentVolume %s is not as it was written (policy %s): %w", pv.Name, now.Spec.PersistentVolumeReclaimPolicy, errStopped)
	}
	m.pv = now
	return nil
}

// removeClaim deletes the old claim, and waits until Kubernetes sees that no pod uses it.
func (p *plugin) removeClaim(ctx context.Context, m *move) error {
	key, claim := client.ObjectKeyFromObject(m.claim), &corev1.PersistentVolumeClaim{}
	switch err := p.client.Get(ctx, key, claim); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read claim %s: %w", key, err)
	case claim.Spec.VolumeName == m.Volume:
		return nil // it is the new one
	case claim.UID != m.claim.UID:
		return fmt.Errorf("somebody has made claim %s anew meanwhile: if nothing is in it, delete it: %w", key, errStopped)
	}
	if claim.DeletionTimestamp == nil {
		pods := &corev1.PodList{}
		if err := p.list(ctx, pods, "pods", client.InNamespace(key.Namespace)); err != nil {
			return err
		}
		if users := podsByClaim(pods)[m.Claim]; len(users) > 0 {
			return fmt.Errorf("pods use claim %s: %s; scale what has made them to 0: %w", key, strings.Join(users, ", "), errStopped)
		}
		uid := claim.UID
		if err := client.IgnoreNotFound(p.client.Delete(ctx, claim, client.Preconditions{UID: &uid})); err != nil {
			return fmt.Errorf("delete claim %s: %w", key, err)
		}
		p.say("%s: claim %s is being deleted.", m.PersistentVolume, key)
	}
	return p.wait(ctx, func() (string, error) {
		err := p.client.Get(ctx, key, claim)
		switch {
		case apierrors.IsNotFound(err) || err == nil && claim.UID != m.claim.UID:
			return "", nil
		case err != nil:
			return "", fmt.Errorf("read claim %s: %w", key, err)
		}
		return fmt.Sprintf("the deletion of claim %s waits for what uses it (kubectl berth why pvc/%s)", key, m.Claim), nil
	})
}

// makeLocalVolume has the node move the directory, and waits until it has.
func (p *plugin) makeLocalVolume(ctx context.Context, m *move) error {
	lv := &berth.LocalVolume{}
	key := client.ObjectKey{Name: m.Volume}
	err := p.client.Get(ctx, key, lv)
	if apierrors.IsNotFound(err) {
		lv = &berth.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: m.Volume},
			Spec: berth.LocalVolumeSpec{
				NodeName: m.Node, Mode: berth.ModeHostpath, Pool: m.Pool, VolumeMode: berth.VolumeFilesystem, SizeBytes: m.Bytes, Wipe: berth.WipeNone,
				Adopt:    &berth.Adoption{Directory: m.Directory},
				ClaimRef: &berth.ClaimReference{Namespace: m.claim.Namespace, Name: m.claim.Name, UID: m.claim.UID},
			},
		}
		if err := p.client.Create(ctx, lv); err != nil {
			return fmt.Errorf("make LocalVolume %s: %w", m.Volume, err)
		}
		p.say("%s: node %s moves %s into pool %s.", m.PersistentVolume, m.Node, m.Directory, m.Pool)
	} else if err != nil {
		return fmt.Errorf("read LocalVolume %s: %w", m.Volume, err)
	}
	if !m.isOurs(lv) {
		return fmt.Errorf("there is a LocalVolume %s that is not of this directory: %w", m.Volume, errStopped)
	}
	return p.wait(ctx, func() (string, error) {
		if err := p.client.Get(ctx, key, lv); err != nil {
			return "", fmt.Errorf("read LocalVolume %s: %w", m.Volume, err)
		}
		m.know(lv)
		c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady)
		switch {
		case lv.DeletionTimestamp != nil:
			return fmt.Sprintf("the deletion of LocalVolume %s was asked for", m.Volume), nil
		case c == nil:
			return fmt.Sprintf("the agent of node %s has not answered yet", m.Node), nil
		case c.Status != metav1.ConditionTrue:
			return fmt.Sprintf("LocalVolume %s is not ready, %s: %s%s", m.Volume, c.Reason, c.Message, m.largerHint(c.Message)), nil
		}
		return "", nil
	})
}

// know takes over what a LocalVolume says of where the directory is.
func (m *move) know(lv *berth.LocalVolume) {
	m.uid = string(lv.UID)
	if lv.Status.Hostpath != nil {
		m.root = lv.Status.Hostpath.Root
	}
	if lv.Status.Capacity != nil {
		m.Bytes = max(m.Bytes, lv.Status.Capacity.Value())
	}
}

// largerHint says how a volume is made larger that holds more than its size.
func (m *move) largerHint(message string) string {
	if !strings.Contains(message, "spec.sizeBytes") {
		return ""
	}
	return fmt.Sprintf(` (kubectl patch localvolume %s --type merge -p '{"spec":{"sizeBytes":BYTES}}')`, m.Volume)
}

// makeVolume makes the new PersistentVolume, which waits for the claim.
func (p *plugin) makeVolume(ctx context.Context, m *move) error {
	pv := &corev1.PersistentVolume{}
	err := p.client.Get(ctx, client.ObjectKey{Name: m.Volume}, pv)
	if err == nil {
		if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != berth.DriverName || pv.Spec.CSI.VolumeHandle != m.Volume {
			return fmt.Errorf("there is a PersistentVolume %s that is not of the volume of that name: %w", m.Volume, errStopped)
		}
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read PersistentVolume %s: %w", m.Volume, err)
	}
	lv := &berth.LocalVolume{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: m.Volume}, lv); err != nil {
		return fmt.Errorf("read LocalVolume %s: %w", m.Volume, err)
	}
	pv = newVolume(lv, *resource.NewQuantity(m.Bytes, resource.BinarySI))
	pv.Spec.AccessModes, pv.Spec.PersistentVolumeReclaimPolicy, pv.Spec.StorageClassName = m.claim.Spec.AccessModes, m.policy, m.StorageClass
	pv.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: m.claim.Namespace, Name: m.claim.Name}
	if err := p.client.Create(ctx, pv); err != nil {
		return fmt.Errorf("make PersistentVolume %s: %w", m.Volume, err)
	}
	return nil
}

// newVolume is a PersistentVolume for a LocalVolume that Berth's provisioner has not made, but for
// its access modes, its policy and who may claim it.
func newVolume(lv *berth.LocalVolume, capacity resource.Quantity) *corev1.PersistentVolume {
	mode := corev1.PersistentVolumeFilesystem
	if lv.Spec.VolumeMode == berth.VolumeBlock {
		mode = corev1.PersistentVolumeBlock
	}
	return &corev1.PersistentVolume{
		// Without the annotation nobody would delete it by its reclaim policy.
		ObjectMeta: metav1.ObjectMeta{Name: lv.Name, Annotations: map[string]string{provisionedBy: berth.DriverName}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:   corev1.ResourceList{corev1.ResourceStorage: capacity},
			VolumeMode: &mode,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: berth.DriverName, VolumeHandle: lv.Name, FSType: lv.Spec.FSType, VolumeAttributes: provision.VolumeAttributes(lv),
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: berth.TopologyKeyNode, Operator: corev1.NodeSelectorOpIn, Values: []string{lv.Spec.NodeName}}},
			}}}},
		},
	}
}

// makeClaim makes the claim anew and waits until it is bound.
func (p *plugin) makeClaim(ctx context.Context, m *move) error {
	key := client.ObjectKeyFromObject(m.claim)
	claim := m.claim.DeepCopy()
	claim.UID, claim.Spec.VolumeName, claim.Spec.StorageClassName = "", m.Volume, &m.StorageClass
	err := p.client.Create(ctx, claim)
	switch {
	case apierrors.IsAlreadyExists(err):
	case err != nil:
		return fmt.Errorf("make claim %s anew: %w", key, err)
	default:
		p.say("%s: claim %s is made anew, with PersistentVolume %s.", m.PersistentVolume, key, m.Volume)
	}
	return p.wait(ctx, func() (string, error) {
		if err := p.client.Get(ctx, key, claim); err != nil {
			return "", fmt.Errorf("read claim %s: %w", key, err)
		}
		switch {
		case claim.Spec.VolumeName != m.Volume:
			return fmt.Sprintf("somebody has made claim %s anew meanwhile, with another volume: if nothing is in it, delete it", key), nil
		case claim.Status.Phase != corev1.ClaimBound:
			return fmt.Sprintf("claim %s is not bound to PersistentVolume %s yet", key, m.Volume), nil
		}
		return "", nil
	})
}

// tellVolume tells the LocalVolume which claim it is that has it now, for events and lists.
func (p *plugin) tellVolume(ctx context.Context, m *move) error {
	claim, lv := &corev1.PersistentVolumeClaim{}, &berth.LocalVolume{}
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(m.claim), claim); err != nil {
		return fmt.Errorf("read claim %s: %w", m.Claim, err)
	}
	if err := p.client.Get(ctx, client.ObjectKey{Name: m.Volume}, lv); err != nil {
		return fmt.Errorf("read LocalVolume %s: %w", m.Volume, err)
	}
	ref := &berth.ClaimReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}
	if lv.Spec.ClaimRef != nil && *lv.Spec.ClaimRef == *ref {
		return nil
	}
	base := lv.DeepCopy()
	lv.Spec.ClaimRef = ref
	if err := p.client.Patch(ctx, lv, client.MergeFrom(base)); err != nil {
		return fmt.Errorf("write its claim into LocalVolume %s: %w", m.Volume, err)
	}
	return nil
}

// pollsPerWait is how often it is looked within --timeout, but not more often than every
// shortestPoll, nor less often than every longestPoll.
const (
	pollsPerWait = 20
	shortestPoll = 5 * time.Millisecond
	longestPoll  = time.Second
)

// wait calls look until it names nothing that is waited for. After --timeout it is errStopped,
// with that.
func (p *plugin) wait(ctx context.Context, look func() (waiting string, err error)) error {
	deadline := time.NewTimer(p.o.Timeout)
	defer deadline.Stop()
	tick := time.NewTicker(max(shortestPoll, min(longestPoll, p.o.Timeout/pollsPerWait)))
	defer tick.Stop()
	for {
		waiting, err := look()
		if err != nil || waiting == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("%s: %w", waiting, errStopped)
		case <-tick.C:
		}
	}
}
