// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/samples"
)

// batch is claims that are made and bound, spread over the nodes. It plays the scheduler, by
// the annotation that names the node, and, where there is none, the volume controller of
// Kubernetes, which binds claim and PersistentVolume once the provisioner has made the latter.
type batch struct {
	cluster *cluster
	// controllers says that Kubernetes' own are there.
	controllers bool
	// name begins the names of the claims.
	name  string
	count int
	nodes int
	// underWay is how many claims may wait for their volumes at a time.
	underWay int
	progress func(bound int)

	mu      sync.Mutex
	created map[string]time.Time
	bound   map[string]time.Time
}

// bind makes the claims and returns when all are bound: how long that has taken from the
// first creation on, and how long each claim was waited for.
func (b *batch) bind(ctx context.Context) (took time.Duration, each samples.Of, err error) {
	b.created, b.bound = map[string]time.Time{}, map[string]time.Time{}
	watcher, err := b.watch(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer watcher.Stop()

	began := time.Now()
	slots := make(chan struct{}, b.underWay)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.create(ctx, slots) })
	group.Go(func() error { return b.follow(ctx, watcher, slots) })
	if err := group.Wait(); err != nil {
		return 0, nil, err
	}
	last := began
	for name, at := range b.bound {
		each = append(each, at.Sub(b.created[name]).Seconds())
		if at.After(last) {
			last = at
		}
	}
	return last.Sub(began), each, nil
}

// watch tells of the PersistentVolumes from now on, or of the claims where they are bound by
// others.
func (b *batch) watch(ctx context.Context) (watch.Interface, error) {
	var list client.ObjectList = &corev1.PersistentVolumeList{}
	from := &client.ListOptions{Limit: 1}
	if b.controllers {
		list, from.Namespace = &corev1.PersistentVolumeClaimList{}, claims
	}
	if err := b.cluster.client.List(ctx, list, from); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	// It goes on where it was when the apiserver ends it.
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, list.GetResourceVersion(), follower{func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return b.cluster.client.Watch(ctx, list, &client.ListOptions{Namespace: from.Namespace, Raw: &o})
	}})
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	return watcher, nil
}

// follower is a cache.WatcherWithContext.
type follower struct {
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// WatchWithContext implements it.
func (f follower) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return f.watch(ctx, o)
}

func (b *batch) create(ctx context.Context, slots chan<- struct{}) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range b.count {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return group.Wait()
		}
		group.Go(func() error {
			storageClass := class
			claim := &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: claims, Name: fmt.Sprintf("%s-%05d", b.name, i),
					Annotations: map[string]string{
						"volume.kubernetes.io/storage-provisioner": berth.DriverName,
						"volume.kubernetes.io/selected-node":       nodeName(i % b.nodes),
					},
				},
				Spec: corev1.PersistentVolumeClaimSpec{
					StorageClassName: &storageClass,
					AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources: corev1.VolumeResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(volumeBytes, resource.BinarySI)},
					},
				},
			}
			b.mu.Lock()
			b.created[claim.Name] = time.Now()
			b.mu.Unlock()
			return again(ctx, "create claim "+claim.Name, func() error {
				return client.IgnoreAlreadyExists(b.cluster.client.Create(ctx, claim))
			})
		})
	}
	return group.Wait()
}

// follow binds what the provisioner makes, or hears that it is bound.
func (b *batch) follow(ctx context.Context, watcher watch.Interface, slots <-chan struct{}) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for seen := 0; seen < b.count; {
		var event watch.Event
		var open bool
		select {
		case <-ctx.Done():
			return group.Wait()
		case event, open = <-watcher.ResultChan():
		}
		if !open {
			return fmt.Errorf("the watch has ended with %d of %d claims bound", seen, b.count)
		}
		switch object := event.Object.(type) {
		case *corev1.PersistentVolume:
			if event.Type != watch.Added || object.Spec.ClaimRef == nil || object.Spec.ClaimRef.Namespace != claims {
				continue
			}
			seen++
			group.Go(func() error {
				defer func() { <-slots }()
				return b.bindOne(ctx, object)
			})
		case *corev1.PersistentVolumeClaim:
			if object.Status.Phase == corev1.ClaimBound && b.isBound(object.Name) {
				seen++
				<-slots
			}
		}
	}
	return group.Wait()
}

// isBound takes down when a claim of the batch was bound; it is false for one of which that
// is known.
func (b *batch) isBound(name string) bool {
	b.mu.Lock()
	_, ours := b.created[name]
	_, known := b.bound[name]
	if ours && !known {
		b.bound[name] = time.Now()
	}
	if ours && !known && b.progress != nil {
		b.progress(len(b.bound))
	}
	b.mu.Unlock()
	return ours && !known
}

func (b *batch) bindOne(ctx context.Context, pv *corev1.PersistentVolume) error {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: claims, Name: pv.Spec.ClaimRef.Name}}
	merge := func(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }
	spec := fmt.Sprintf(`{"metadata":{"annotations":{"pv.kubernetes.io/bind-completed":"yes","pv.kubernetes.io/bound-by-controller":"yes"}},"spec":{"volumeName":%q}}`, pv.Name)
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	status := fmt.Sprintf(`{"status":{"phase":"Bound","accessModes":["ReadWriteOnce"],"capacity":{"storage":%q}}}`, size.String())
	for _, write := range []func() error{
		func() error {
			return b.cluster.client.Status().Patch(ctx, pv.DeepCopy(), merge(`{"status":{"phase":"Bound"}}`))
		},
		func() error { return b.cluster.client.Patch(ctx, claim, merge(spec)) },
		func() error { return b.cluster.client.Status().Patch(ctx, claim, merge(status)) },
	} {
		if err := again(ctx, "bind claim "+claim.Name, write); err != nil {
			return err
		}
	}
	b.isBound(claim.Name)
	return nil
}
