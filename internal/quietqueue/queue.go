// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package quietqueue makes the queues of controllers that cost nothing while they are
// empty.
package quietqueue

import (
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// New is the NewQueue of a controller. The queue has no name: client-go keeps metrics
// of those that have one, and wakes the process twice a second for each of them
// (updateUnfinishedWorkLoop), as the priority queue of controller-runtime does.
func New(_ string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	return workqueue.NewTypedRateLimitingQueue(limiter)
}
