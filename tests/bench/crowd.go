// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/tests/workload"
)

// awaitAllBound waits by one watch until n claims of the namespace are Bound and
// returns the names of their volumes.
func awaitAllBound(ctx context.Context, space *workload.Space, n int) (map[string]bool, error) {
	volumes := map[string]bool{}
	for len(volumes) < n {
		claims := &corev1.PersistentVolumeClaimList{}
		if err := space.Client.List(ctx, claims, client.InNamespace(space.Namespace)); err != nil {
			return nil, fmt.Errorf("list claims: %w", err)
		}
		for _, claim := range claims.Items {
			if claim.Status.Phase == corev1.ClaimBound {
				volumes[claim.Spec.VolumeName] = true
			}
		}
		err := follow(ctx, space, &corev1.PersistentVolumeClaimList{}, claims.ResourceVersion, space.Namespace, func(event watch.Event) bool {
			claim, ok := event.Object.(*corev1.PersistentVolumeClaim)
			if ok && claim.Status.Phase == corev1.ClaimBound {
				volumes[claim.Spec.VolumeName] = true
			}
			return len(volumes) >= n
		}, len(volumes) >= n)
		if err != nil {
			return nil, fmt.Errorf("wait for %d claims, %d are bound: %w", n, len(volumes), err)
		}
	}
	return volumes, nil
}

// awaitAllGone waits by one watch until none of the volumes exists.
func awaitAllGone(ctx context.Context, space *workload.Space, volumes map[string]bool) error {
	for {
		left := map[string]bool{}
		existing := &corev1.PersistentVolumeList{}
		if err := space.Client.List(ctx, existing); err != nil {
			return fmt.Errorf("list volumes: %w", err)
		}
		for _, volume := range existing.Items {
			if volumes[volume.Name] {
				left[volume.Name] = true
			}
		}
		err := follow(ctx, space, &corev1.PersistentVolumeList{}, existing.ResourceVersion, "", func(event watch.Event) bool {
			if volume, ok := event.Object.(*corev1.PersistentVolume); ok && event.Type == watch.Deleted {
				delete(left, volume.Name)
			}
			return len(left) == 0
		}, len(left) == 0)
		if err != nil {
			return fmt.Errorf("wait for volumes to go, %d are left: %w", len(left), err)
		}
		if len(left) == 0 {
			return nil
		}
	}
}

// follow watches until enough says so; it also returns when the watch ends.
func follow(ctx context.Context, space *workload.Space, list client.ObjectList, from, namespace string, enough func(watch.Event) bool, already bool) error {
	if already {
		return nil
	}
	watcher, err := space.Client.Watch(ctx, list, &client.ListOptions{Namespace: namespace, Raw: &metav1.ListOptions{ResourceVersion: from}})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		if enough(event) {
			return nil
		}
	}
	return ctx.Err()
}
