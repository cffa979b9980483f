// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// SetConfig takes a new version of the ConfigMap berth-config, nil when there is
// none. One that is not valid, or none, changes nothing: the last good filters
// stay in force (I10), with an Event and a metric; while there never was one, no
// disk is usable. It says so in its log and returns what is wrong.
func (inv *Inventory) SetConfig(config *corev1.ConfigMap) error {
	if config == nil {
		inv.metrics.filtersValid.Set(0)
		err := fmt.Errorf("ConfigMap %s/%s is not there", inv.opts.Namespace, v1alpha1.ConfigMapName)
		inv.log.Error(err, "the last good filters stay in force")
		inv.requeue()
		return err
	}
	filters, err := FromConfigMap(config.Data)
	if err != nil {
		inv.metrics.filtersValid.Set(0)
		err = fmt.Errorf("ConfigMap %s/%s: %w", inv.opts.Namespace, v1alpha1.ConfigMapName, err)
		inv.log.Error(err, "the last good filters stay in force")
		inv.opts.Recorder.Eventf(config, nil, corev1.EventTypeWarning, "InvalidFilters", "LoadFilters",
			"node %s keeps the last good filters: %s", inv.opts.NodeName, truncated(err.Error()))
		inv.requeue()
		return err
	}
	inv.metrics.filtersValid.Set(1)
	for _, note := range filters.Notes {
		inv.log.Info("filters", "note", note)
	}
	inv.mu.Lock()
	inv.config = filters
	inv.applyFilters()
	inv.mu.Unlock()
	inv.log.Info("filters are in force", "resourceVersion", config.ResourceVersion)
	inv.requeue()
	return nil
}

// SetNodeLabels takes the labels of the node, by which rules are chosen. It does
// nothing when they are what they were.
func (inv *Inventory) SetNodeLabels(node labels.Set) {
	inv.mu.Lock()
	if maps.Equal(inv.nodeLabels, node) {
		inv.mu.Unlock()
		return
	}
	inv.nodeLabels = maps.Clone(node)
	changed := inv.config != nil
	if changed {
		inv.applyFilters()
	}
	inv.mu.Unlock()
	if changed {
		inv.requeue()
	}
}

// applyFilters has the configuration count as it does on this node. inv.mu is held.
func (inv *Inventory) applyFilters() {
	inv.filters = inv.config.forNode(inv.nodeLabels)
	inv.reindex(nil) // which devices have an object depends on the filters
}

// requeue has every disk judged again.
func (inv *Inventory) requeue() {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	for name := range inv.disks {
		inv.queue.Add(name)
	}
}

// ObserveObject takes a version of an object that somebody else may have written,
// and passes over those that are older than what is known.
func (inv *Inventory) ObserveObject(bd *v1alpha1.BlockDevice) {
	if bd.Spec.NodeName != inv.opts.NodeName {
		return
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	d := inv.disk(bd.Name)
	if d.object != nil && !newer(bd.ResourceVersion, d.object.ResourceVersion) {
		return
	}
	d.object = bd.DeepCopy()
	inv.notify()
	inv.queue.Add(bd.Name)
}

// ObserveDeletion takes note that an object is gone. A disk that is there gets a
// new one.
func (inv *Inventory) ObserveDeletion(bd *v1alpha1.BlockDevice) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	d := inv.disks[bd.Name]
	if d == nil || d.object == nil || d.object.UID != bd.UID {
		return
	}
	d.object = nil
	inv.notify()
	inv.queue.Add(bd.Name)
}

// newer compares resource versions, which are numbers that grow (KEP-5504).
func newer(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil && a != b || order > 0
}

// listen follows the ConfigMap and the objects through the informers.
func (inv *Inventory) listen(ctx context.Context) error {
	if inv.opts.Informers == nil {
		return nil
	}
	objects, err := inv.opts.Informers.GetInformer(ctx, &v1alpha1.BlockDevice{})
	if err != nil {
		return fmt.Errorf("watch the BlockDevices: %w", err)
	}
	configs, err := inv.opts.Informers.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s: %w", v1alpha1.ConfigMapName, err)
	}
	nodes, err := inv.opts.Informers.GetInformer(ctx, NodeMetadata())
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", inv.opts.NodeName, err)
	}
	if _, err := objects.AddEventHandler(inv.objectHandler()); err != nil {
		return fmt.Errorf("watch the BlockDevices: %w", err)
	}
	labelled, err := nodes.AddEventHandler(inv.nodeHandler())
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", inv.opts.NodeName, err)
	}
	configured, err := configs.AddEventHandler(inv.configHandler())
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s: %w", v1alpha1.ConfigMapName, err)
	}
	// Judge once, with the filters that count here, and not first without them.
	if !toolscache.WaitForCacheSync(ctx.Done(), labelled.HasSynced, configured.HasSynced) {
		return ctx.Err()
	}
	return nil
}

func (inv *Inventory) objectHandler() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { observe(object, inv.ObserveObject) },
		UpdateFunc: func(_, object any) { observe(object, inv.ObserveObject) },
		DeleteFunc: func(object any) { observe(object, inv.ObserveDeletion) },
	}
}

// NodeMetadata is the only form in which the agent reads Nodes: their status changes
// every few minutes and is of no use here.
func NodeMetadata() *metav1.PartialObjectMetadata {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	return node
}

// nodeHandler keeps the last labels of a Node that is deleted: the disks are still
// here, and it comes back when kubelet registers.
func (inv *Inventory) nodeHandler() toolscache.ResourceEventHandler {
	set := func(node *metav1.PartialObjectMetadata) {
		if node.Name == inv.opts.NodeName {
			inv.SetNodeLabels(node.Labels)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { observe(object, set) },
		UpdateFunc: func(_, object any) { observe(object, set) },
	}
}

func (inv *Inventory) configHandler() toolscache.ResourceEventHandler {
	set := func(config *corev1.ConfigMap) {
		if inv.isConfig(config) {
			_ = inv.SetConfig(config) // it has told itself
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { observe(object, set) },
		UpdateFunc: func(_, object any) { observe(object, set) },
		DeleteFunc: func(object any) {
			observe(object, func(config *corev1.ConfigMap) {
				if inv.isConfig(config) {
					_ = inv.SetConfig(nil)
				}
			})
		},
	}
}

func (inv *Inventory) isConfig(config *corev1.ConfigMap) bool {
	return config.Namespace == inv.opts.Namespace && config.Name == v1alpha1.ConfigMapName
}

// observe unwraps what an informer hands out.
func observe[T any](object any, f func(T)) {
	if tombstone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	if o, ok := object.(T); ok {
		f(o)
	}
}
