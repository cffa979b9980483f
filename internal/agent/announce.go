// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
)

// Announcer makes Events; events.EventRecorder is one. It does not block, and what it
// cannot write is lost: the conditions say the same.
type Announcer interface {
	Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any)
}

// Reasons of Events beside those of the conditions.
const (
	// reasonDiskJoined and reasonDiskLeft are about the disks of a pool.
	reasonDiskJoined = "DiskJoined"
	reasonDiskLeft   = "DiskLeft"
	// Those of left-overs that somebody has asked to purge.
	reasonLeftOverQuarantined = "LeftOverQuarantined"
	reasonLeftOverPurged      = "LeftOverPurged"
	reasonPurgeRefused        = "PurgeRefused"
)

// Actions of Events: what the agent did when it noticed.
const (
	actionKeepPool   = "KeepPool"
	actionKeepVolume = "KeepVolume"
	actionPurge      = "PurgeLeftOver"
)

// announcePool tells of a pool that is another one than it was, after its status was
// written. What is not known is no news; nor is what was told before it was not known.
func (r *PoolReconciler) announcePool(p *livePool, before, pool *v1alpha1.Pool) {
	if p.told == "" {
		if was := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.PoolReady); was != nil && was.Status != metav1.ConditionUnknown {
			p.told = was.Reason
		}
	}
	for _, change := range []struct {
		reason, verb string
		in, notIn    []string
	}{
		{reasonDiskJoined, "joined", pool.Status.BlockDevices, before.Status.BlockDevices},
		{reasonDiskLeft, "left", before.Status.BlockDevices, pool.Status.BlockDevices},
	} {
		if names := without(change.in, change.notIn); len(names) > 0 {
			r.Recorder.Eventf(pool, nil, corev1.EventTypeNormal, change.reason, actionKeepPool,
				"%s the pool: %s", change.verb, strings.Join(names, ", "))
		}
	}
	announcePurges(r.Recorder, pool, before.Status.Purges, pool.Status.Purges)
	now := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady)
	if now == nil || now.Status == metav1.ConditionUnknown || now.Reason == p.told {
		return
	}
	p.told = now.Reason
	kind := corev1.EventTypeWarning
	if now.Reason == v1alpha1.ReasonPoolReady {
		kind = corev1.EventTypeNormal
	}
	r.Recorder.Eventf(pool, nil, kind, now.Reason, actionKeepPool, "%s", now.Message)
}

// without returns what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
}

// announceVolume tells of a volume that was handed out and cannot be used any more, or can
// again. While it is made, and when its claim is changed, the provisioner and the resizer
// say what comes of it.
func (r *VolumeReconciler) announceVolume(before, lv *v1alpha1.LocalVolume) {
	if before.Status.Capacity == nil {
		return
	}
	for _, kind := range []string{v1alpha1.LocalVolumeReady, v1alpha1.LocalVolumeLimited, v1alpha1.LocalVolumeHealthy} {
		was, now := meta.FindStatusCondition(before.Status.Conditions, kind), meta.FindStatusCondition(lv.Status.Conditions, kind)
		if was == nil && kind == v1alpha1.LocalVolumeHealthy {
			was = &metav1.Condition{Status: metav1.ConditionTrue} // nothing was ever wrong
		}
		switch {
		case was == nil || now == nil || was.Status == now.Status && was.Reason == now.Reason:
		case now.Reason == lvm.ReasonRebuilding:
			r.announce(lv, corev1.EventTypeNormal, now.Reason, now.Message)
		case now.Status == metav1.ConditionFalse:
			r.announce(lv, corev1.EventTypeWarning, now.Reason, now.Message)
		case now.Status == metav1.ConditionTrue && was.Status == metav1.ConditionFalse:
			r.announce(lv, corev1.EventTypeNormal, now.Reason, now.Message)
		}
	}
}

// announce makes an Event of the claim, which is what a user looks at; of the volume where
// there is no claim any more.
func (r *VolumeReconciler) announce(lv *v1alpha1.LocalVolume, eventType, reason, message string) {
	note := fmt.Sprintf("volume %s on node %s: %s", lv.Name, lv.Spec.NodeName, message)
	claim := lv.Spec.ClaimRef
	if claim == nil || !lv.DeletionTimestamp.IsZero() {
		r.Recorder.Eventf(lv, nil, eventType, reason, actionKeepVolume, "%s", note)
		return
	}
	r.Recorder.Eventf(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
	}, lv, eventType, reason, actionKeepVolume, "%s", note)
}
