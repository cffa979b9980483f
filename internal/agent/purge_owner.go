// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// leftBehind is what objects could name a left-over by.
type leftBehind struct {
	uid string
	// names are what the volume is called, by the node's ledger and by the mark on the disk.
	names []string
	// prefix is what its name begins with, where the mark has no more of it.
	prefix string
	// storage is what is on the disk; nil where nothing is.
	storage *volume.Record
	// links are stable paths of it, where it is a disk.
	links []string
	// adopter is the UID of the LocalVolume that is to have it; empty for none.
	adopter string
}

// behind is what objects could name a left-over by that has those names. Of the last, when it is
// cut, each longer one may be the volume's.
func behind(uid string, names []string, cut bool, storage *volume.Record, links ...string) leftBehind {
	l := leftBehind{uid: uid, names: names, storage: storage, links: links}
	if cut && len(names) > 0 {
		l.prefix = names[len(names)-1]
	}
	return l
}

func (l leftBehind) isCalled(name string) bool {
	return slices.Contains(l.names, name) || l.prefix != "" && strings.HasPrefix(name, l.prefix)
}

// isSource reports whether it is what a volume is to begin as a copy of.
func (l leftBehind) isSource(of v1alpha1.VolumeSource) bool {
	return string(of.UID) == l.uid || of.Kind == v1alpha1.SourceSnapshot && l.isCalled(of.Name)
}

// ownerPage is how many objects are read at once: an agent has little memory.
const ownerPage = 500

// ownerOf asks the API server, and not the cache, for an object that a left-over belongs to. It
// returns how that is called, "" for none; an error says nothing.
func ownerOf(ctx context.Context, live client.Reader, l leftBehind) (owner string, err error) {
	for _, look := range []func(context.Context, client.Reader, leftBehind) (string, error){
		volumeThatHas, snapshotThatHas, persistentVolumeThatHas, contentThatHas, nodeThatHas,
	} {
		if owner, err := look(ctx, live, l); err != nil || owner != "" {
			return owner, err
		}
	}
	return "", nil
}

// eachPage reads a list to its end, or until one says that it has found something.
func eachPage(ctx context.Context, live client.Reader, list client.ObjectList, what string, find func() string) (string, error) {
	next := ""
	for {
		if err := live.List(ctx, list, client.Limit(ownerPage), client.Continue(next)); err != nil {
			return "", fmt.Errorf("list %s: %w", what, err)
		}
		if found := find(); found != "" {
			return found, nil
		}
		if next = list.GetContinue(); next == "" {
			return "", nil
		}
	}
}

// volumeThatHas looks at the LocalVolumes of all nodes.
func volumeThatHas(ctx context.Context, live client.Reader, l leftBehind) (string, error) {
	list := &v1alpha1.LocalVolumeList{}
	return eachPage(ctx, live, list, "LocalVolumes", func() string {
		for i := range list.Items {
			lv := &list.Items[i]
			rec := recordOf(lv)
			switch {
			case l.adopter != "" && string(lv.UID) == l.adopter:
			case lv.Spec.Adopt != nil && lv.Spec.Adopt.LeftOver != nil && lv.Spec.Adopt.LeftOver.UID == l.uid:
				return "LocalVolume " + lv.Name + ", which asks to adopt it"
			case lv.Spec.Adopt != nil && l.storage != nil && l.storage.Device != nil && lv.Spec.Adopt.Device == l.storage.Device.Name:
				return "LocalVolume " + lv.Name + ", which asks to adopt the disk"
			case string(lv.UID) == l.uid, l.isCalled(lv.Name), rec != nil && l.storage != nil && rec.SameStorage(*l.storage):
				return "LocalVolume " + lv.Name
			case lv.Spec.Source != nil && l.isSource(*lv.Spec.Source) && !isReady(lv):
				return "LocalVolume " + lv.Name + ", which is being made as its copy"
			}
		}
		return ""
	})
}

func snapshotThatHas(ctx context.Context, live client.Reader, l leftBehind) (string, error) {
	list := &v1alpha1.LocalSnapshotList{}
	return eachPage(ctx, live, list, "LocalSnapshots", func() string {
		for i := range list.Items {
			s := &list.Items[i]
			if string(s.UID) == l.uid || l.isCalled(s.Name) || l.storage != nil && recordOfSnapshot(s).SameStorage(*l.storage) ||
				string(s.Spec.VolumeUID) == l.uid || l.isCalled(s.Spec.VolumeName) {
				return "LocalSnapshot " + s.Name
			}
		}
		return ""
	})
}

// persistentVolumeThatHas looks at those of the driver, and at those that name a path.
func persistentVolumeThatHas(ctx context.Context, live client.Reader, l leftBehind) (string, error) {
	directory := ""
	if l.storage != nil && l.storage.Hostpath != nil {
		directory = path.Join(l.storage.Hostpath.Root, l.storage.Hostpath.Directory)
	}
	within := func(p string) bool {
		p = path.Clean(p)
		if slices.Contains(l.links, p) {
			return true
		}
		// A directory is called by the UID, which is nobody else's: that counts whatever the path is, for
		// there may be links above the root.
		return directory != "" && (p == directory || strings.HasPrefix(p, directory+"/") || slices.Contains(strings.Split(p, "/"), l.uid))
	}
	list := &corev1.PersistentVolumeList{}
	return eachPage(ctx, live, list, "PersistentVolumes", func() string {
		for i := range list.Items {
			pv := &list.Items[i]
			switch {
			case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == v1alpha1.DriverName && (l.isCalled(pv.Spec.CSI.VolumeHandle) || l.isCalled(pv.Name)),
				pv.Spec.Local != nil && within(pv.Spec.Local.Path),
				pv.Spec.HostPath != nil && within(pv.Spec.HostPath.Path):
				return "PersistentVolume " + pv.Name
			}
		}
		return ""
	})
}

// nodeThatHas looks for a disk that another node sees as well (a shelf with two ports, a LUN that is
// mapped twice), or has seen last and holds for somebody: what is on it may be that one's, and
// nothing on this node shows that it is in use there.
func nodeThatHas(ctx context.Context, live client.Reader, l leftBehind) (string, error) {
	if l.storage == nil || l.storage.Device == nil {
		return "", nil
	}
	disk := l.storage.Device
	if !(block.Identity{Scheme: disk.IdentityScheme, Value: disk.IdentityValue}).Worldwide() {
		return "", nil
	}
	list := &v1alpha1.BlockDeviceList{}
	return eachPage(ctx, live, list, "BlockDevices", func() string {
		for i := range list.Items {
			bd := &list.Items[i]
			// The name is of the node as well: of this one there is no other.
			if bd.Name == disk.Name || bd.Status.Identity == nil || bd.Status.Identity.Scheme != disk.IdentityScheme || bd.Status.Identity.Value != disk.IdentityValue {
				continue
			}
			if bd.Status.State != v1alpha1.DeviceInactive || bd.Spec.ClaimRef != nil {
				return "node " + bd.Spec.NodeName + ", too, which has the disk as BlockDevice " + bd.Name
			}
		}
		return ""
	})
}

// SnapshotContents is the list of VolumeSnapshotContents, of which there are no Go types here.
var SnapshotContents = schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContentList"}

// contentHandles are the fields in which they name a volume, or a snapshot.
var contentHandles = [][]string{{"spec", "source", "volumeHandle"}, {"spec", "source", "snapshotHandle"}, {"status", "snapshotHandle"}}

// contentThatHas looks at the VolumeSnapshotContents, where the cluster has such.
func contentThatHas(ctx context.Context, live client.Reader, l leftBehind) (string, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(SnapshotContents)
	owner, err := eachPage(ctx, live, list, "VolumeSnapshotContents", func() string {
		for i := range list.Items {
			c := list.Items[i].Object
			if driver, _, _ := unstructured.NestedString(c, "spec", "driver"); driver != v1alpha1.DriverName {
				continue
			}
			for _, field := range contentHandles {
				if handle, _, _ := unstructured.NestedString(c, field...); handle != "" && l.isCalled(handle) {
					return "VolumeSnapshotContent " + list.Items[i].GetName()
				}
			}
			// One whose status has no handle yet, or not any more: how the sidecar names what it asks for.
			if of, _, _ := unstructured.NestedString(c, "spec", "volumeSnapshotRef", "uid"); of != "" && l.isCalled("snapshot-"+of) {
				return "VolumeSnapshotContent " + list.Items[i].GetName()
			}
		}
		return ""
	})
	// The API server says so of a kind that the cluster does not have. What the client itself does
	// not know is no proof.
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	return owner, err
}
