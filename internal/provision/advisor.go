// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// eventReason of the Advisor's events.
	eventReason = "CannotProvision"
	eventAction = "Advise"
	// maxNote is what the API takes (validateEvent allows 1 kB).
	maxNote = 1000
	// capacityGrace is how long agents have to publish capacity for a class before
	// its absence is a problem.
	capacityGrace = 30 * time.Second
)

// Advisor tells users why a claim that waits for its first consumer will never be
// provisioned. With that binding mode the scheduler chooses a node first, and
// while none fits, or none has capacity because the class is wrong, the library
// never hears of the claim: nobody would say anything.
//
// It writes one Warning event for each distinct problem of a claim, and nothing
// else.
type Advisor struct {
	// Reader of a cache with claims, classes, PoolSets and CSIStorageCapacities.
	Reader client.Reader
	// Namespace of the CSIStorageCapacities.
	Namespace string
	Recorder  events.EventRecorder
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	waiting waitingClaims
}

// Reconcile looks at one claim.
func (a *Advisor) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	claim := &corev1.PersistentVolumeClaim{}
	err := a.Reader.Get(ctx, req.NamespacedName, claim)
	if apierrors.IsNotFound(err) || err == nil && !waits(claim) {
		a.waiting.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read claim %s: %w", req.NamespacedName, err)
	}
	a.waiting.remember(req.NamespacedName, className(claim), claim.UID)
	found, again, err := a.judge(ctx, claim)
	if err != nil {
		return reconcile.Result{}, err
	}
	if found.text != "" && a.waiting.isNew(req.NamespacedName, claim.UID, found.key) {
		a.Recorder.Eventf(claim, nil, corev1.EventTypeWarning, eventReason, eventAction, "%s", truncate(found.text, maxNote))
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// Judge returns what stands in the way of a claim that waits for its first consumer, in words,
// or nothing. It needs neither Recorder nor queue.
func (a *Advisor) Judge(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
	found, _, err := a.judge(ctx, claim)
	return found.text, err
}

// waits reports whether the claim waits for somebody to choose its node.
func waits(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil &&
		claim.Annotations[annotationSelectedNode] == "" && className(claim) != ""
}

func className(claim *corev1.PersistentVolumeClaim) string {
	if name, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	if claim.Spec.StorageClassName != nil {
		return *claim.Spec.StorageClassName
	}
	return ""
}

// problem is what stands in a claim's way. Two of one key are the same problem,
// though their texts may differ, as sizes in them change all the time.
type problem struct{ key, text string }

// sayOnce is a problem that is told by its text.
func sayOnce(text string) problem { return problem{key: text, text: text} }

// judge returns what stands in the claim's way, or nothing; and when to look
// again, if that should be without an event.
func (a *Advisor) judge(ctx context.Context, claim *corev1.PersistentVolumeClaim) (found problem, again time.Duration, err error) {
	class := &storagev1.StorageClass{}
	if err := a.Reader.Get(ctx, types.NamespacedName{Name: className(claim)}, class); err != nil {
		// A class that does not exist is told by kube-controller-manager.
		return problem{}, 0, client.IgnoreNotFound(err)
	}
	delayed := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if source, _ := SourceOf(claim); class.Provisioner != berth.DriverName || !delayed || source == SourceOther {
		return problem{}, 0, nil // Provision itself answers for classes that bind immediately
	}
	params, err := ParseParameters(class.Parameters)
	if err != nil {
		return sayOnce(fmt.Sprintf("StorageClass %q: %v. Parameters cannot be changed: make the class anew", class.Name, err)), 0, nil
	}
	if refusal := CheckClaim(claim, params); refusal != nil {
		return sayOnce(refusal.Error()), 0, nil
	}
	if text, err := a.judgePool(ctx, class.Name, params); text != "" || err != nil {
		return problem{key: "pool", text: text}, 0, err
	}
	return a.judgeCapacity(ctx, claim, class, params)
}

// judgePool says whether the class names a PoolSet that exists and fits its mode.
func (a *Advisor) judgePool(ctx context.Context, class string, params Parameters) (string, error) {
	if params.Mode == berth.ModeDevice {
		return "", nil
	}
	sets := &berth.PoolSetList{}
	if err := a.Reader.List(ctx, sets); err != nil {
		return "", fmt.Errorf("list PoolSets: %w", err)
	}
	missing := slices.Clone(params.Pools)
	var others []string
	for _, set := range sets.Items {
		named, fits := slices.Contains(params.Pools, set.Name), string(set.Spec.Kind) == string(params.Mode)
		switch {
		case named && fits:
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == set.Name })
		case named:
			return fmt.Sprintf("PoolSet %q is of kind %s and StorageClass %q asks it for mode %s; make the class anew with mode %s, or with another pool",
				set.Name, set.Spec.Kind, class, params.Mode, set.Spec.Kind), nil
		case fits:
			others = append(others, set.Name)
		}
	}
	if len(missing) < len(params.Pools) {
		return "", nil // its volumes are in the others
	}
	slices.Sort(others)
	advice := "create it"
	if len(others) > 0 {
		advice = "create it or name one of: " + strings.Join(others, ", ")
	}
	return fmt.Sprintf("PoolSet %q of StorageClass %q does not exist%s; %s", missing[0], class, strings.TrimSuffix(didYouMean(missing[0], others), "?"), advice), nil
}

// judgeCapacity says whether any node has published that the claim fits there.
func (a *Advisor) judgeCapacity(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, params Parameters) (problem, time.Duration, error) {
	list := &storagev1.CSIStorageCapacityList{}
	if err := a.Reader.List(ctx, list, client.InNamespace(a.Namespace)); err != nil {
		return problem{}, 0, fmt.Errorf("list CSIStorageCapacities: %w", err)
	}
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	var largest *resource.Quantity
	var where string
	for i := range list.Items {
		offer := &list.Items[i]
		if offer.StorageClassName != class.Name {
			continue
		}
		// The scheduler looks at maximumVolumeSize first (capacity is the sum).
		size := offer.MaximumVolumeSize
		if size == nil {
			size = offer.Capacity
		}
		if size == nil {
			continue
		}
		if size.Cmp(request) >= 0 {
			return problem{}, 0, nil
		}
		if largest == nil || size.Cmp(*largest) > 0 {
			largest, where = size, nodeOf(offer)
		}
	}
	if largest != nil && largest.Sign() > 0 {
		return problem{key: "too large", text: fmt.Sprintf("%s is larger than the largest free space of StorageClass %q: %s on %s (kubectl get %s)",
			request.String(), class.Name, human(largest), where, whereSpaceIs(params.Mode))}, 0, nil
	}
	youngest := class.CreationTimestamp.Time
	if claim.CreationTimestamp.After(youngest) {
		youngest = claim.CreationTimestamp.Time
	}
	if left := capacityGrace - a.now().Sub(youngest); left > 0 {
		return problem{}, left, nil
	}
	text := fmt.Sprintf("no node has free space for StorageClass %q (mode %s%s); kubectl get %s shows why",
		class.Name, params.Mode, ofPools(params.Pools), whereSpaceIs(params.Mode))
	if params.DeviceSelector != nil {
		// Its free disks may well be there, and none be meant.
		wanted, err := json.Marshal(params.DeviceSelector)
		if err != nil {
			return problem{}, 0, fmt.Errorf("write the deviceSelector of StorageClass %s: %w", class.Name, err)
		}
		text = fmt.Sprintf("no node has a free disk as StorageClass %q wants it (deviceSelector %s); kubectl get %s shows what the disks are, and why those in use are",
			class.Name, wanted, whereSpaceIs(params.Mode))
	}
	return problem{key: "no space", text: text}, 0, nil
}

func (a *Advisor) now() time.Time {
	if a.Now != nil {
		return a.Now()
	}
	return time.Now()
}

func ofPools(pools []string) string {
	if len(pools) == 0 {
		return ""
	}
	return ", pool " + strings.Join(pools, " or ")
}

func nodeOf(offer *storagev1.CSIStorageCapacity) string {
	if offer.NodeTopology != nil {
		if name := offer.NodeTopology.MatchLabels[berth.TopologyKeyNode]; name != "" {
			return "node " + name
		}
	}
	return "a node"
}

// human writes a size with the largest binary unit that leaves at least two
// digits, rounded down: never more than there is.
func human(q *resource.Quantity) string {
	size, unit := q.Value(), ""
	for _, next := range []string{"Ki", "Mi", "Gi", "Ti", "Pi"} {
		if size < 10<<10 {
			break
		}
		size, unit = size>>10, next
	}
	return fmt.Sprintf("%d%s", size, unit)
}

func truncate(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}
