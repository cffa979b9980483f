// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// purge does what spec.purge asks for and returns when to look again; 0 for not before
// something happens.
func (r *PoolReconciler) purge(ctx context.Context, pool *v1alpha1.Pool, view *poolView) time.Duration {
	name := pool.Spec.PoolSetName
	p := r.live(name)
	if r.Purger == nil || p.backend == nil || view.record == nil {
		return 0
	}
	place := PurgePlace{PoolSet: name, Mode: modeOf(view.record.Kind), Backend: p.backend, Again: func() { r.queue.add(name) }}
	all, wait := r.Purger.Tend(ctx, place, pool.Spec.Purge)
	view.purges = &all
	for _, now := range all {
		if was, known := purgeOf(pool.Status.Purges, now.UID); now.State == v1alpha1.PurgePurged && (!known || was.State != now.State) {
			p.leftOvers.lookAgain() // so that it is not told any longer
		}
	}
	return wait
}

func purgeOf(all []v1alpha1.PurgeStatus, uid string) (v1alpha1.PurgeStatus, bool) {
	if i := slices.IndexFunc(all, func(s v1alpha1.PurgeStatus) bool { return s.UID == uid }); i >= 0 {
		return all[i], true
	}
	return v1alpha1.PurgeStatus{}, false
}

// announcePurges tells of left-overs that were put into quarantine or removed, or are not.
func announcePurges(recorder Announcer, regarding runtime.Object, before, after []v1alpha1.PurgeStatus) {
	for _, now := range after {
		if was, _ := purgeOf(before, now.UID); was.State == now.State {
			continue
		}
		switch now.State {
		case v1alpha1.PurgeQuarantined:
			recorder.Eventf(regarding, nil, corev1.EventTypeWarning, reasonLeftOverQuarantined, actionPurge, "%s is to be purged when that is confirmed: %s", now.UID, now.Holds)
		case v1alpha1.PurgeRefused:
			recorder.Eventf(regarding, nil, corev1.EventTypeWarning, reasonPurgeRefused, actionPurge, "%s is kept: %s", now.UID, now.Message)
		case v1alpha1.PurgePurged:
			recorder.Eventf(regarding, nil, corev1.EventTypeNormal, reasonLeftOverPurged, actionPurge, "%s was purged: %s", now.UID, now.Holds)
		case v1alpha1.PurgeWaiting, v1alpha1.PurgePurging:
		}
	}
}
