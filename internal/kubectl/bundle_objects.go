// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// pageSize is how many objects are asked for at once.
const pageSize = 500

// object is one, as the API server has it.
type object = unstructured.Unstructured

// collected is a kind of objects that goes into a bundle.
type collected struct {
	// folder and file it goes to; the file is called after the kind.
	folder, file         string
	group, version, kind string
	// system is whether only those of Berth's namespace are read.
	system bool
	// keep says which; nil keeps all.
	keep func(*object) bool
	// shape takes away what is not of interest; nil takes nothing.
	shape func(*object)
	// optional kinds are not installed everywhere.
	optional bool
}

// text returns a field of an object, or "".
func text(o *object, path ...string) string {
	found, _, err := unstructured.NestedString(o.Object, path...)
	if err != nil {
		return ""
	}
	return found
}

func is(want string, path ...string) func(*object) bool {
	return func(o *object) bool { return text(o, path...) == want }
}

// kinds are what is collected, in that order: what leads to others comes before them.
func (b *bundle) kinds() []collected {
	refers := func(kind string, path ...string) func(*object) bool {
		return func(o *object) bool { return b.known[key(kind, "", text(o, path...))] }
	}
	anyOf := func(all ...func(*object) bool) func(*object) bool {
		return func(o *object) bool { return slices.ContainsFunc(all, func(f func(*object) bool) bool { return f(o) }) }
	}
	const (
		berthFolder, kube, system = "berth", "kubernetes", "system"
		storage, snapshots        = "storage.k8s.io", "snapshot.storage.k8s.io"
		groups                    = "groupsnapshot.storage.k8s.io"
	)
	ours := is(berth.DriverName, "spec", "driver")
	own := func(file, kind string) collected {
		return collected{folder: berthFolder, file: file, group: berth.GroupVersion.Group, version: berth.GroupVersion.Version, kind: kind}
	}
	named := func(names ...string) func(*object) bool {
		return func(o *object) bool { return slices.Contains(names, o.GetName()) }
	}
	labelled := func(o *object) bool {
		return slices.Contains([]string{agentName, provisionerName}, o.GetLabels()[nameLabel])
	}
	return []collected{
		own("poolsets", "PoolSet"), own("pools", "Pool"), own("blockdevices", "BlockDevice"), own("localvolumes", "LocalVolume"), own("localsnapshots", "LocalSnapshot"),
		{folder: kube, file: "storageclasses", group: storage, version: "v1", kind: "StorageClass", keep: is(berth.DriverName, "provisioner")},
		{folder: kube, file: "volumeattributesclasses", group: storage, version: "v1", kind: "VolumeAttributesClass", keep: is(berth.DriverName, "driverName"), optional: true},
		{folder: kube, file: "persistentvolumes", version: "v1", kind: "PersistentVolume", keep: is(berth.DriverName, "spec", "csi", "driver")},
		{
			folder: kube, file: "persistentvolumeclaims", version: "v1", kind: "PersistentVolumeClaim",
			keep: anyOf(refers("PersistentVolume", "spec", "volumeName"), refers("StorageClass", "spec", "storageClassName")),
		},
		{folder: kube, file: "volumesnapshotclasses", group: snapshots, version: "v1", kind: "VolumeSnapshotClass", keep: is(berth.DriverName, "driver"), optional: true},
		{folder: kube, file: "volumesnapshotcontents", group: snapshots, version: "v1", kind: "VolumeSnapshotContent", keep: ours, optional: true},
		{
			folder: kube, file: "volumesnapshots", group: snapshots, version: "v1", kind: "VolumeSnapshot", optional: true,
			keep: anyOf(refers("VolumeSnapshotContent", "status", "boundVolumeSnapshotContentName"), refers("VolumeSnapshotClass", "spec", "volumeSnapshotClassName")),
		},
		{folder: kube, file: "volumegroupsnapshotclasses", group: groups, version: "v1", kind: "VolumeGroupSnapshotClass", keep: is(berth.DriverName, "driver"), optional: true},
		{folder: kube, file: "volumegroupsnapshotcontents", group: groups, version: "v1", kind: "VolumeGroupSnapshotContent", keep: ours, optional: true},
		{
			folder: kube, file: "volumegroupsnapshots", group: groups, version: "v1", kind: "VolumeGroupSnapshot", optional: true,
			keep: anyOf(refers("VolumeGroupSnapshotContent", "status", "boundVolumeGroupSnapshotContentName"), refers("VolumeGroupSnapshotClass", "spec", "volumeGroupSnapshotClassName")),
		},
		{folder: kube, file: "csidrivers", group: storage, version: "v1", kind: "CSIDriver", keep: named(berth.DriverName)},
		{folder: kube, file: "csinodes", group: storage, version: "v1", kind: "CSINode"},
		{folder: kube, file: "csistoragecapacities", group: storage, version: "v1", kind: "CSIStorageCapacity", keep: refers("StorageClass", "storageClassName")},
		{folder: kube, file: "nodes", version: "v1", kind: "Node", shape: shapeNode},
		{folder: system, file: "definitions", group: "apiextensions.k8s.io", version: "v1", kind: "CustomResourceDefinition", keep: is(berth.GroupVersion.Group, "spec", "group"), shape: shapeDefinition},
		{folder: system, file: "deployments", group: "apps", version: "v1", kind: "Deployment", system: true, keep: named(provisionerName)},
		{folder: system, file: "daemonsets", group: "apps", version: "v1", kind: "DaemonSet", system: true, keep: named(agentName)},
		{folder: system, file: "pods", version: "v1", kind: "Pod", system: true, keep: labelled},
		{folder: system, file: "leases", group: "coordination.k8s.io", version: "v1", kind: "Lease", system: true, keep: named(provisionerName)},
		{folder: system, file: "configmaps", version: "v1", kind: "ConfigMap", system: true, keep: isBerthConfig, shape: shapeConfig},
	}
}

func key(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// shapeNode leaves of a node what placing volumes depends on: no addresses, no annotations.
func shapeNode(o *object) {
	spec := map[string]any{}
	for _, field := range []string{"unschedulable", "taints"} {
		if value, ok, _ := unstructured.NestedFieldNoCopy(o.Object, "spec", field); ok {
			spec[field] = value
		}
	}
	status := map[string]any{}
	for _, field := range []string{"conditions", "nodeInfo"} {
		if value, ok, _ := unstructured.NestedFieldNoCopy(o.Object, "status", field); ok {
			status[field] = value
		}
	}
	o.Object["spec"], o.Object["status"] = spec, status
	o.SetAnnotations(nil)
}

// shapeDefinition leaves its schema out: that is known by its version.
func shapeDefinition(o *object) {
	delete(o.Object, "spec")
}

func isBerthConfig(o *object) bool {
	return o.GetName() == berth.ConfigMapName || isKeptMetadata(o)
}

func isKeptMetadata(o *object) bool {
	return strings.HasPrefix(o.GetName(), berth.MetadataConfigMapPrefix)
}

// shapeConfig leaves out what is not text: the metadata are in files of their own.
func shapeConfig(o *object) {
	packed, ok := o.Object["binaryData"].(map[string]any)
	if !ok {
		return
	}
	for name, data := range packed {
		packed[name] = fmt.Sprintf("%d characters of base64", len(fmt.Sprint(data)))
	}
}

// each calls back with every object of a kind.
func (b *bundle) each(ctx context.Context, c collected, call func(*object)) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: c.group, Version: c.version, Kind: c.kind + "List"})
	options := &client.ListOptions{Limit: pageSize}
	if c.system {
		options.Namespace = b.o.SystemNamespace
	}
	for {
		if err := b.client.List(ctx, list, options); err != nil {
			return err
		}
		for i := range list.Items {
			call(&list.Items[i])
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
		list.Items = nil
	}
}

// addObjects adds the objects of all kinds.
func (b *bundle) addObjects(ctx context.Context) error {
	for _, c := range b.kinds() {
		var kept []*object
		err := b.each(ctx, c, func(o *object) {
			if c.keep == nil || c.keep(o) {
				kept = append(kept, o.DeepCopy())
			}
		})
		switch {
		case c.optional && meta.IsNoMatchError(err):
			continue
		case err != nil:
			b.fail(c.folder+"/"+c.file+".yaml", err)
			continue
		}
		b.read++
		for _, o := range kept {
			b.known[key(c.kind, o.GetNamespace(), o.GetName())] = true
			if c.shape != nil {
				c.shape(o)
			}
		}
		if err := b.addList(c.folder+"/"+c.file+".yaml", kept); err != nil {
			return err
		}
	}
	return nil
}

// addList adds a file with objects, sorted, redacted.
func (b *bundle) addList(name string, objects []*object) error {
	slices.SortFunc(objects, func(x, y *object) int {
		return cmp.Or(cmp.Compare(x.GetNamespace(), y.GetNamespace()), cmp.Compare(x.GetName(), y.GetName()))
	})
	var all strings.Builder
	for _, o := range objects {
		redactObject(o.Object)
		content, err := yaml.Marshal(o.Object)
		if err != nil {
			return fmt.Errorf("write %s into the bundle: %w", name, err)
		}
		all.WriteString("---\n")
		all.Write(content)
	}
	return b.add(name, []byte(all.String()))
}

// addEvents adds the events of what was collected, and of the pods that use claims of Berth.
func (b *bundle) addEvents(ctx context.Context) error {
	err := b.each(ctx, collected{version: "v1", kind: "Pod"}, func(o *object) {
		pod := &corev1.Pod{}
		if convert(o, pod) != nil {
			return
		}
		for claim := range podsByClaim(&corev1.PodList{Items: []corev1.Pod{*pod}}) {
			namespace, name, _ := strings.Cut(claim, "/")
			if b.known[key("PersistentVolumeClaim", namespace, name)] {
				b.known[key("Pod", pod.Namespace, pod.Name)] = true
			}
		}
	})
	if err != nil {
		b.fail("pods that use claims of Berth, and their events", err)
	}
	var kept []*object
	err = b.each(ctx, collected{version: "v1", kind: "Event"}, func(o *object) {
		of := func(field string) string { return text(o, "involvedObject", field) }
		if strings.HasPrefix(of("apiVersion"), berth.GroupVersion.Group+"/") || of("namespace") == b.o.SystemNamespace ||
			b.known[key(of("kind"), of("namespace"), of("name"))] {
			kept = append(kept, o.DeepCopy())
		}
	})
	if err != nil {
		b.fail("kubernetes/events.yaml", err)
		return nil
	}
	return b.addList("kubernetes/events.yaml", kept)
}

// mostMetadataBytes of one volume group's metadata are unpacked: lvm's own limit is far below.
const mostMetadataBytes = 16 << 20

// metadataKey of the ConfigMaps with kept metadata is lvm's text, packed.
const metadataKey = "volumeGroup"

// addMetadata adds the kept metadata of volume groups as the text that they are. Dumps of thin
// pools are left out: they are large, and say nothing to people.
func (b *bundle) addMetadata(ctx context.Context) error {
	list := &corev1.ConfigMapList{}
	if err := b.client.List(ctx, list, client.InNamespace(b.o.SystemNamespace)); err != nil {
		return nil //nolint:nilerr // noted with the objects
	}
	slices.SortFunc(list.Items, func(x, y corev1.ConfigMap) int { return cmp.Compare(x.Name, y.Name) })
	for i := range list.Items {
		c := &list.Items[i]
		packed := c.BinaryData[metadataKey]
		if !strings.HasPrefix(c.Name, berth.MetadataConfigMapPrefix) || len(packed) == 0 {
			continue
		}
		content, err := unpack(packed)
		if err != nil {
			b.fail("lvm-metadata/"+c.Name+".txt", err)
			continue
		}
		if err := b.add("lvm-metadata/"+c.Name+".txt", []byte(redactText(string(content)))); err != nil {
			return err
		}
	}
	return nil
}

func unpack(packed []byte) ([]byte, error) {
	zip, err := gzip.NewReader(strings.NewReader(string(packed)))
	if err != nil {
		return nil, fmt.Errorf("unpack the metadata: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(zip, mostMetadataBytes+1))
	if err != nil {
		return nil, fmt.Errorf("unpack the metadata: %w", err)
	}
	if len(content) > mostMetadataBytes {
		return nil, errors.New("unpack the metadata: they are larger than 16 MiB")
	}
	return content, nil
}
