// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package provisiontest is a small cluster in memory for tests of the
// provisioner and of the CSI Controller service: an API server's store that
// counts requests, and agents that carve volumes out of numbers.
package provisiontest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
)

// Cluster is an API server in memory with the pieces that wait on it.
type Cluster struct {
	// Client is the provisioner's client; what it does is counted.
	Client client.WithWatch
	// Backdoor does the same uncounted: the hand of users, agents and controllers.
	Backdoor client.WithWatch
	Tracker  *provision.Tracker
	Volumes  *provision.Volumes

	mu       sync.Mutex
	requests []string
	// fail, if set, may refuse a counted request, before or after it took effect.
	fail func(verb string, obj runtime.Object, name string) (before, after error)
}

// Scheme has the types that the provisioner uses.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, storagev1.AddToScheme, berth.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return scheme
}

// New returns a cluster with these objects. It feeds its tracker until the test
// ends.
func New(t testing.TB, objects ...client.Object) *Cluster {
	t.Helper()
	for _, obj := range objects {
		if obj.GetUID() == "" {
			obj.SetUID(types.UID(uuid.NewString()))
		}
	}
	backdoor := interceptor.NewClient(
		fake.NewClientBuilder().WithScheme(Scheme()).WithObjects(objects...).WithStatusSubresource(&berth.LocalVolume{}, &berth.LocalSnapshot{}).
			WithIndex(&berth.Pool{}, "spec.nodeName", nodeOfPool).Build(),
		interceptor.Funcs{Create: createWithUID, Delete: deleteWithUID, Patch: patchWithGeneration})
	c := &Cluster{Backdoor: backdoor, Tracker: provision.NewTracker()}
	c.Client = interceptor.NewClient(backdoor, interceptor.Funcs{
		Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			return c.do("GET", obj, key.Name, func() error { return w.Get(ctx, key, obj, opts...) })
		},
		List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return c.do("LIST", list, "", func() error { return w.List(ctx, list, opts...) })
		},
		Create: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return c.do("POST", obj, obj.GetName(), func() error { return w.Create(ctx, obj, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			return c.do("PUT", obj, obj.GetName(), func() error { return w.Update(ctx, obj, opts...) })
		},
		Patch: func(ctx context.Context, w client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return c.do("PATCH", obj, obj.GetName(), func() error { return w.Patch(ctx, obj, patch, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return c.do("DELETE", obj, obj.GetName(), func() error { return w.Delete(ctx, obj, opts...) })
		},
	})
	c.Volumes = provision.NewVolumes(c.Client, c.Client, c.Tracker)
	c.Feed(t, c.Tracker)
	return c
}

// nodeOfPool is the selectable field of the CustomResourceDefinition.
func nodeOfPool(obj client.Object) []string {
	if pool, ok := obj.(*berth.Pool); ok {
		return []string{pool.Spec.NodeName}
	}
	return nil
}

// Feed gives a tracker what an informer would give it, until the test ends.
func (c *Cluster) Feed(t testing.TB, tracker *provision.Tracker) {
	t.Helper()
	c.Watch(t, func(event watch.Event) {
		switch event.Type {
		case watch.Added:
			tracker.OnAdd(event.Object, false)
		case watch.Modified:
			tracker.OnUpdate(nil, event.Object)
		case watch.Deleted:
			tracker.OnDelete(event.Object)
		}
	})
}

// Watch calls the function for each LocalVolume that stands and each later event,
// one at a time, until the test ends.
func (c *Cluster) Watch(t testing.TB, handle func(watch.Event)) {
	t.Helper()
	watcher, err := c.Backdoor.Watch(context.Background(), &berth.LocalVolumeList{})
	if err != nil {
		t.Fatalf("watch LocalVolumes: %v", err)
	}
	list := &berth.LocalVolumeList{}
	if err := c.Backdoor.List(context.Background(), list); err != nil {
		t.Fatalf("list LocalVolumes: %v", err)
	}
	for i := range list.Items {
		handle(watch.Event{Type: watch.Added, Object: &list.Items[i]})
	}
	queue := newQueue()
	done := make(chan struct{})
	go func() {
		for event := range watcher.ResultChan() {
			queue.add(event)
		}
		queue.close()
	}()
	go func() {
		defer close(done)
		for event, ok := queue.next(); ok; event, ok = queue.next() {
			handle(event)
		}
	}()
	t.Cleanup(func() { watcher.Stop(); <-done })
}

// queue is a channel without an end: the fake's own channel panics when full.
type queue struct {
	mu     sync.Mutex
	wake   *sync.Cond
	events []watch.Event
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.wake = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(event watch.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = append(q.events, event)
	q.wake.Signal()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Signal()
}

func (q *queue) next() (watch.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.events) == 0 && !q.closed {
		q.wake.Wait()
	}
	if len(q.events) == 0 || q.closed {
		return watch.Event{}, false
	}
	event := q.events[0]
	q.events = q.events[1:]
	return event, true
}

// Requests returns what the provisioner asked of the API server since the last
// call, as "VERB kind".
func (c *Cluster) Requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.requests
	c.requests = nil
	return out
}

// Fail lets the function refuse requests of the provisioner: before they take
// effect, or after, as when an answer is lost. Nil refuses nothing.
func (c *Cluster) Fail(fail func(verb string, obj runtime.Object, name string) (before, after error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

func (c *Cluster) do(verb string, obj runtime.Object, name string, act func() error) error {
	c.mu.Lock()
	c.requests = append(c.requests, fmt.Sprintf("%s %T", verb, obj))
	fail := c.fail
	c.mu.Unlock()
	if fail == nil {
		return act()
	}
	before, after := fail(verb, obj, name)
	if before != nil {
		return before
	}
	if err := act(); err != nil {
		return err
	}
	return after
}

// createWithUID does what an API server does and the fake does not.
func createWithUID(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
	obj.SetUID(types.UID(uuid.NewString()))
	return w.Create(ctx, obj, opts...)
}

// patchWithGeneration counts the changes of a LocalVolume's spec, as an API server does
// and the fake does not: with the change, so that nobody sees one without the other.
func patchWithGeneration(ctx context.Context, w client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	lv, ok := obj.(*berth.LocalVolume)
	if !ok || patch.Type() != types.MergePatchType {
		return w.Patch(ctx, obj, patch, opts...)
	}
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	for {
		current := &berth.LocalVolume{}
		if err := w.Get(ctx, client.ObjectKeyFromObject(obj), current); err != nil {
			return err
		}
		next, err := merged(current, data)
		if err != nil {
			return err
		}
		if next.UID != current.UID || next.ResourceVersion != current.ResourceVersion {
			return apierrors.NewConflict(berth.GroupVersion.WithResource("localvolumes").GroupResource(), obj.GetName(), errors.New("it is another one, or was changed"))
		}
		if !equality.Semantic.DeepEqual(current.Spec, next.Spec) {
			next.Generation = current.Generation + 1
		}
		if err = w.Update(ctx, next); !apierrors.IsConflict(err) {
			if err == nil {
				*lv = *next
			}
			return err
		}
	}
}

// merged applies a JSON merge patch (RFC 7386).
func merged(current *berth.LocalVolume, patch []byte) (*berth.LocalVolume, error) {
	var object, changes map[string]any
	text, err := json.Marshal(current)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(json.Unmarshal(text, &object), json.Unmarshal(patch, &changes)); err != nil {
		return nil, err
	}
	merge(object, changes)
	if text, err = json.Marshal(object); err != nil {
		return nil, err
	}
	next := &berth.LocalVolume{}
	return next, json.Unmarshal(text, next)
}

func merge(object, changes map[string]any) {
	for key, value := range changes {
		inner, isObject := value.(map[string]any)
		switch {
		case value == nil:
			delete(object, key)
		case isObject:
			below, ok := object[key].(map[string]any)
			if !ok {
				below = map[string]any{}
			}
			merge(below, inner)
			object[key] = below
		default:
			object[key] = value
		}
	}
}

// deleteWithUID honours the precondition that the fake ignores.
func deleteWithUID(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
	options := (&client.DeleteOptions{}).ApplyOptions(opts)
	if options.Preconditions != nil && options.Preconditions.UID != nil {
		current := obj.DeepCopyObject().(client.Object)
		if err := w.Get(ctx, client.ObjectKeyFromObject(obj), current); err != nil {
			return err
		}
		if current.GetUID() != *options.Preconditions.UID {
			return apierrors.NewConflict(berth.GroupVersion.WithResource("localvolumes").GroupResource(), obj.GetName(),
				fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", *options.Preconditions.UID, current.GetUID()))
		}
	}
	return w.Delete(ctx, obj, opts...)
}

// SetReady writes the condition Ready as an agent does. A capacity of 0 leaves
// status.capacity as it is.
func (c *Cluster) SetReady(ctx context.Context, name string, status metav1.ConditionStatus, reason, message string, capacityBytes int64) error {
	return c.updateStatus(ctx, name, func(lv *berth.LocalVolume) {
		meta.SetStatusCondition(&lv.Status.Conditions, metav1.Condition{
			Type: berth.LocalVolumeReady, Status: status, Reason: reason, Message: message, ObservedGeneration: lv.Generation,
		})
		setCapacity(lv, capacityBytes)
	})
}

func (c *Cluster) updateStatus(ctx context.Context, name string, change func(*berth.LocalVolume)) error {
	for {
		lv := &berth.LocalVolume{}
		if err := c.Backdoor.Get(ctx, types.NamespacedName{Name: name}, lv); err != nil {
			return err
		}
		before := lv.DeepCopy()
		change(lv)
		if equality.Semantic.DeepEqual(before.Status, lv.Status) {
			// An API server makes no event of it. The fake does, to which an agent would answer for ever.
			return nil
		}
		if err := c.Backdoor.Status().Update(ctx, lv); !apierrors.IsConflict(err) {
			return err
		}
	}
}
