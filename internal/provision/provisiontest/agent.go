// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provisiontest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// Agent carves LocalVolumes of its node out of a number of free bytes.
type Agent struct {
	cluster *Cluster
	node    string

	mu      sync.Mutex
	free    int64
	carved  map[types.UID]int64
	paused  bool
	answer  func(*berth.LocalVolume) (reason, message string)
	pending []string
	// unlimited agents cannot hold pods to limits.
	unlimited bool
	made      int
}

// NewAgent runs an agent for the node until the test ends.
func (c *Cluster) NewAgent(t testing.TB, node string, freeBytes int64) *Agent {
	t.Helper()
	a := &Agent{cluster: c, node: node, free: freeBytes, carved: map[types.UID]int64{}}
	c.Watch(t, func(event watch.Event) {
		if lv, ok := event.Object.(*berth.LocalVolume); ok && lv.Spec.NodeName == node && event.Type != watch.Deleted {
			a.Reconcile(context.Background(), lv.Name)
		}
	})
	return a
}

// Pause makes the agent deaf, as when it or its node is down. Resume lets it
// catch up.
func (a *Agent) Pause() { a.mu.Lock(); a.paused = true; a.mu.Unlock() }

// Resume lets the agent act on what it missed.
func (a *Agent) Resume() {
	a.mu.Lock()
	a.paused = false
	missed := a.pending
	a.pending = nil
	a.mu.Unlock()
	for _, name := range missed {
		a.Reconcile(context.Background(), name)
	}
}

// Answer makes the agent refuse volumes with that reason where the function
// returns one. Nil carves.
func (a *Agent) Answer(answer func(*berth.LocalVolume) (reason, message string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// CannotLimit makes the agent one of a node without cgroup v2, or of one with it again.
func (a *Agent) CannotLimit(cannot bool) { a.mu.Lock(); a.unlimited = cannot; a.mu.Unlock() }

// Carved is the number of volumes that stand on the node.
func (a *Agent) Carved() int { a.mu.Lock(); defer a.mu.Unlock(); return len(a.carved) }

// Made is the number of volumes that were ever carved on the node.
func (a *Agent) Made() int { a.mu.Lock(); defer a.mu.Unlock(); return a.made }

// Reconcile looks at one LocalVolume and does what is to be done.
func (a *Agent) Reconcile(ctx context.Context, name string) {
	lv := &berth.LocalVolume{}
	if err := a.cluster.Backdoor.Get(ctx, types.NamespacedName{Name: name}, lv); err != nil || lv.Spec.NodeName != a.node {
		return
	}
	if lv.DeletionTimestamp != nil {
		a.remove(ctx, lv)
		return
	}
	size, reason, message, deaf := a.carve(lv)
	if deaf {
		return
	}
	err := a.cluster.updateStatus(ctx, name, func(current *berth.LocalVolume) {
		if current.UID != lv.UID {
			return
		}
		// The answer is to the spec that was read, not to one that came meanwhile.
		a.report(current, lv.Generation, size, reason, message)
	})
	if err != nil && !apierrors.IsNotFound(err) {
		panic(fmt.Sprintf("agent of %s: %v", a.node, err))
	}
}

// carve takes or grows the space and returns its size and the reason why it is no
// more.
func (a *Agent) carve(lv *berth.LocalVolume) (size int64, reason, message string, deaf bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deaf(lv.Name) {
		return 0, "", "", true
	}
	if a.answer != nil {
		if reason, message := a.answer(lv); reason != "" {
			return a.carved[lv.UID], reason, message, false
		}
	}
	have, known := a.carved[lv.UID]
	if !known && a.unlimited && lv.Spec.Limits != nil {
		return 0, berth.ReasonNotEnforceable, "no cgroup v2", false
	}
	if more := lv.Spec.SizeBytes - have; more > 0 {
		if more > a.free {
			return have, berth.ReasonNoSpace, fmt.Sprintf("%d bytes are free", a.free), false
		}
		a.free -= more
		a.carved[lv.UID] = lv.Spec.SizeBytes
	}
	if !known {
		a.made++
	}
	return a.carved[lv.UID], "", "", false
}

// deaf reports whether the agent is paused, and keeps the name for later. The
// caller holds the lock.
func (a *Agent) deaf(name string) bool {
	if a.paused {
		a.pending = append(a.pending, name)
	}
	return a.paused
}

func (a *Agent) report(lv *berth.LocalVolume, generation, size int64, reason, message string) {
	condition := metav1.Condition{
		Type: berth.LocalVolumeReady, Status: metav1.ConditionTrue, Reason: berth.ReasonCarved,
		Message: "carved", ObservedGeneration: generation,
	}
	stands := meta.IsStatusConditionTrue(lv.Status.Conditions, berth.LocalVolumeReady)
	switch {
	case reason == "":
		setCapacity(lv, size)
		meta.RemoveStatusCondition(&lv.Status.Conditions, berth.LocalVolumeResized)
	case stands:
		condition.Type = berth.LocalVolumeResized
		fallthrough
	default:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, reason, message
		if reason == berth.ReasonPoolNotReady || reason == berth.ReasonFailed {
			condition.Status = metav1.ConditionUnknown // it tries again
		}
	}
	meta.SetStatusCondition(&lv.Status.Conditions, condition)
	if size > 0 {
		a.limit(lv)
	}
}

// limit reports what became of the limits of a volume that stands.
func (a *Agent) limit(lv *berth.LocalVolume) {
	a.mu.Lock()
	unlimited := a.unlimited
	a.mu.Unlock()
	condition := metav1.Condition{Type: berth.LocalVolumeLimited, ObservedGeneration: lv.Generation}
	switch {
	case lv.Spec.Limits == nil:
		lv.Status.Limits = nil
		meta.RemoveStatusCondition(&lv.Status.Conditions, berth.LocalVolumeLimited)
		return
	case unlimited:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, berth.ReasonNotEnforceable, "no cgroup v2"
	default:
		lv.Status.Limits = lv.Spec.Limits.DeepCopy()
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, berth.ReasonInForce, "in force"
	}
	meta.SetStatusCondition(&lv.Status.Conditions, condition)
}

// remove gives the space back and removes the finalizer: the proof.
func (a *Agent) remove(ctx context.Context, lv *berth.LocalVolume) {
	a.mu.Lock()
	deaf := a.deaf(lv.Name)
	if !deaf {
		a.free += a.carved[lv.UID]
		delete(a.carved, lv.UID)
	}
	a.mu.Unlock()
	if deaf {
		return
	}
	lv.Finalizers = slices.DeleteFunc(lv.Finalizers, func(f string) bool { return f == berth.AgentFinalizer })
	if err := a.cluster.Backdoor.Update(ctx, lv); apierrors.IsConflict(err) {
		a.Reconcile(ctx, lv.Name)
	}
}

func setCapacity(lv *berth.LocalVolume, bytes int64) {
	if bytes > 0 {
		lv.Status.Capacity = resource.NewQuantity(bytes, resource.BinarySI)
	}
}
