// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Space is one namespace of one cluster to put claims and pods in.
type Space struct {
	// Client reaches the cluster.
	Client client.WithWatch
	// Namespace holds everything that is made.
	Namespace string
	// Image has a POSIX shell, dd, sync and sha256sum.
	Image string
}

// AddToScheme registers the types a Space works with.
func AddToScheme(scheme *runtime.Scheme) error {
	if err := eventsv1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("add event types: %w", err)
	}
	if err := corev1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("add core types: %w", err)
	}
	if err := storagev1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("add storage types: %w", err)
	}
	return nil
}

// Ensure makes the namespace if it is not there, and waits for the service
// account that pods need.
func (s *Space) Ensure(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}
	if err := s.Client.Create(ctx, ns); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", s.Namespace, err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: s.Namespace}}
	return s.Await(ctx, account, func(object client.Object, gone bool) (bool, error) { return !gone, nil })
}

// Remove deletes the namespace and waits until it is gone.
func (s *Space) Remove(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}
	return s.Delete(ctx, ns)
}

// Condition looks at an object as it changes. gone is true when the object does
// not exist (any more); object then holds its last known state. It returns true
// when the wait is over.
type Condition func(object client.Object, gone bool) (bool, error)

// Await watches one object by name until the condition holds. The object is
// filled with the state that satisfied it. It misses nothing between its first
// look and the watch, and survives a watch that ends.
func (s *Space) Await(ctx context.Context, object client.Object, holds Condition) error {
	key := client.ObjectKeyFromObject(object)
	kind, err := s.Client.GroupVersionKindFor(object)
	if err != nil {
		return fmt.Errorf("await %s: %w", key, err)
	}
	list, err := s.newList(object)
	if err != nil {
		return fmt.Errorf("await %s: %w", key, err)
	}
	for {
		gone := false
		if err := s.Client.Get(ctx, key, object); apierrors.IsNotFound(err) {
			gone = true
		} else if err != nil {
			return fmt.Errorf("await %s %s: %w", kind.Kind, key, err)
		}
		if done, err := holds(object, gone); done || err != nil {
			return err
		}
		done, err := s.follow(ctx, key, object, list, gone, holds)
		if done || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("await %s %s: %w", kind.Kind, key, context.Cause(ctx))
		}
	}
}

// follow watches from the state the caller has seen; it returns false when the
// watch ended and the caller has to look again.
func (s *Space) follow(ctx context.Context, key types.NamespacedName, object client.Object, list client.ObjectList, gone bool, holds Condition) (bool, error) {
	options := &client.ListOptions{
		Namespace:     key.Namespace,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", key.Name),
		Raw:           &metav1.ListOptions{},
	}
	if !gone {
		options.Raw.ResourceVersion = object.GetResourceVersion()
	}
	watcher, err := s.Client.Watch(ctx, list, options)
	if err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		return false, fmt.Errorf("watch %s: %w", key, err)
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		switch event.Type {
		case watch.Added, watch.Modified, watch.Deleted:
		default:
			return false, nil
		}
		seen, ok := event.Object.(client.Object)
		if !ok {
			return false, nil
		}
		if err := copyInto(object, seen); err != nil {
			return false, err
		}
		if done, err := holds(object, event.Type == watch.Deleted); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

func (s *Space) newList(object client.Object) (client.ObjectList, error) {
	kind, err := s.Client.GroupVersionKindFor(object)
	if err != nil {
		return nil, err
	}
	if _, ok := object.(*unstructured.Unstructured); ok {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		return list, nil
	}
	made, err := s.Client.Scheme().New(kind.GroupVersion().WithKind(kind.Kind + "List"))
	if err != nil {
		return nil, err
	}
	list, ok := made.(client.ObjectList)
	if !ok {
		return nil, fmt.Errorf("%T is not a list", made)
	}
	return list, nil
}

func copyInto(target, source client.Object) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(source)
	if err != nil {
		return fmt.Errorf("copy %T: %w", source, err)
	}
	if target, ok := target.(*unstructured.Unstructured); ok {
		target.SetUnstructuredContent(raw)
		return nil
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(raw, target)
}

// Delete deletes an object and waits until it is gone. An object that is not
// there is deleted already.
func (s *Space) Delete(ctx context.Context, object client.Object) error {
	if err := s.Client.Delete(ctx, object, client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("delete %s: %w", client.ObjectKeyFromObject(object), err)
	}
	uid := object.GetUID()
	return s.Await(ctx, object, func(seen client.Object, gone bool) (bool, error) {
		return gone || (uid != "" && seen.GetUID() != uid), nil
	})
}
