// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// newDirectories makes a pool of directories on the agent's host.
func (a *agentProcess) newDirectories(set string) *v1alpha1.PoolSet {
	a.t.Helper()
	root := filepath.Join(a.dir, "volumes")
	if err := os.Mkdir(root, 0o755); err != nil {
		a.t.Fatal(err)
	}
	object := &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: set}, Spec: v1alpha1.PoolSetSpec{
		Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: root},
		NodeSelector: map[string]string{"of": set},
	}}
	if err := server.admin.Create(a.t.Context(), object); err != nil {
		a.t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.node}}
	label := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"of":"`+set+`"}}}`))
	if err := server.admin.Patch(a.t.Context(), node, label); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = server.admin.Delete(context.Background(), object) })
	return object
}

// newDirectory asks for a volume as the provisioner does, and waits until it is there.
func (a *agentProcess) newDirectory(name, set string) *v1alpha1.LocalVolume {
	a.t.Helper()
	lv := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{v1alpha1.AgentFinalizer}},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: a.node, Mode: v1alpha1.ModeHostpath, Pool: set, SizeBytes: 1 << 20,
			VolumeMode: v1alpha1.VolumeFilesystem, Wipe: v1alpha1.WipeNone,
		},
	}
	if err := server.admin.Create(a.t.Context(), lv); err != nil {
		a.t.Fatal(err)
	}
	a.awaitReady(name, metav1.ConditionTrue, v1alpha1.ReasonCarved)
	return lv
}

func (a *agentProcess) awaitReady(name string, status metav1.ConditionStatus, reason string) {
	a.t.Helper()
	lv := &v1alpha1.LocalVolume{}
	a.eventually("LocalVolume "+name+" is "+reason, func() bool {
		return exists(a.t, lv, name) && func() bool {
			c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeReady)
			return c != nil && c.Status == status && c.Reason == reason
		}()
	})
}

// pod has a volume at a path, as kubelet sees to it.
type pod struct {
	a            *agentProcess
	volume       string
	stage, place string
}

func (a *agentProcess) newPod(volume string) *pod {
	a.t.Helper()
	p := &pod{a: a, volume: volume, stage: filepath.Join(a.dir, "kubelet", volume, "stage"), place: filepath.Join(a.dir, "kubelet", volume, "pod")}
	if err := os.MkdirAll(p.stage, 0o750); err != nil {
		a.t.Fatal(err)
	}
	return p
}

// start stages and publishes the volume.
func (p *pod) start() error {
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
	_, err := p.a.csi().NodeStageVolume(p.a.t.Context(), &csi.NodeStageVolumeRequest{VolumeId: p.volume, StagingTargetPath: p.stage, VolumeCapability: capability})
	if err != nil {
		return err
	}
	_, err = p.a.csi().NodePublishVolume(p.a.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: p.volume, StagingTargetPath: p.stage, TargetPath: p.place, VolumeCapability: capability,
	})
	return err
}

// stop unpublishes and unstages the volume.
func (p *pod) stop() error {
	_, err := p.a.csi().NodeUnpublishVolume(p.a.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: p.volume, TargetPath: p.place})
	if err != nil {
		return err
	}
	_, err = p.a.csi().NodeUnstageVolume(p.a.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: p.volume, StagingTargetPath: p.stage})
	return err
}

// file is a file of the volume as the pod sees it.
func (p *pod) file() string { return filepath.Join(p.a.host, p.place, "data") }

// mustStart starts the pod and lets it write, or read what it wrote before.
func (p *pod) mustStart(want string) {
	p.a.t.Helper()
	if err := p.start(); err != nil {
		p.a.t.Fatalf("start a pod with volume %s: %v", p.volume, err)
	}
	if want == "" {
		if err := os.WriteFile(p.file(), []byte(p.volume), 0o600); err != nil {
			p.a.t.Fatal(err)
		}
		want = p.volume
	}
	p.holds(want)
}

// holds fails the test unless the pod still sees its data.
func (p *pod) holds(want string) {
	p.a.t.Helper()
	content, err := os.ReadFile(p.file())
	if err != nil || string(content) != want {
		p.a.t.Fatalf("volume %s holds %q (%v), want %q", p.volume, content, err, want)
	}
	if _, err := os.Lstat(filepath.Join(p.a.dir, strings.TrimPrefix(p.place, p.a.dir), "data")); err == nil {
		p.a.t.Fatalf("volume %s is not a mount of the host", p.volume)
	}
}

func (p *pod) mustStop() {
	p.a.t.Helper()
	if err := p.stop(); err != nil {
		p.a.t.Fatalf("stop a pod with volume %s: %v", p.volume, err)
	}
}

// The whole agent against a real apiserver, with a token of its own pod and under the
// rights and policies of deploy/base, of which none is left over.
func TestAgent(t *testing.T) {
	a := newAgent(t, "it-agent")
	storageClass(t, "it-directories", map[string]string{"mode": "hostpath", "pool": "it-directories"})
	filters := ofKind[corev1.ConfigMap](t, "../berth.yaml", "ConfigMap")[0]
	if err := server.admin.Create(t.Context(), filters); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.admin.Delete(context.Background(), filters) })
	defineTomorrow(t) // the agent is the older one
	a.begin()
	set := a.newDirectories("it-directories")
	lv := a.newDirectory("it-agent-volume", "it-directories")
	p := a.newPod(lv.Name)
	p.mustStart("")
	p.mustStop()

	a.eventually("capacity", func() bool { return a.published() > 0 })
	a.eventually("an event in its own name", func() bool {
		list := &eventsv1.EventList{}
		if err := server.admin.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.ReportingInstance == "berth-node-agent-"+agentPod(a.node) && strings.HasPrefix(e.Regarding.Name, "it-")
		})
	})
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "it-directories-" + a.node}}
	a.keepsWhatItDoesNotKnow(lv, pool)
	if err := as(t, provisioner, "").Delete(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
	a.eventually("the volume is gone", func() bool { return !exists(t, lv, lv.Name) })
	for _, object := range []client.Object{set, pool} {
		if err := server.admin.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	a.eventually("the pool is gone", func() bool { return !exists(t, pool, pool.Name) })
	a.eventually("its capacity is gone", func() bool { return a.published() == 0 })
	a.end()
	if log := a.log.String(); strings.Contains(log, "forbidden") || strings.Contains(log, "denied request") {
		t.Errorf("it was refused something:\n%s", log)
	}

	const (
		conflict = "a BlockDevice is read anew after a write that ended in doubt"
		metadata = "copies of the metadata of volume groups, see TestAgentWritesItsOwnMetadata"
		snapshot = "snapshots are of mode lvm, see TestAgentWritesItsOwnPart"
		moved    = "capacity that has changed is written a while later, see TestAgentWritesItsOwnPart"
		purged   = "they are read when somebody asks to purge a left-over, see TestAgentLooksForOwners"
		repeated = "an event that is repeated is counted, see TestAgentWritesItsOwnPart"
	)
	checkRights(t, "node-agent.yaml", nodeAgent, map[right]string{
		{"get", "blockdevices.berth.dev"}:                          conflict,
		{"get", "configmaps"}:                                      metadata,
		{"create", "configmaps"}:                                   metadata,
		{"patch", "configmaps"}:                                    metadata,
		{"delete", "configmaps"}:                                   metadata,
		{"list", "configmaps"}:                                     fallback,
		{"list", "nodes"}:                                          fallback,
		{"list", "localvolumes.berth.dev"}:                         fallback,
		{"list", "localsnapshots.berth.dev"}:                       fallback,
		{"list", "pools.berth.dev"}:                                fallback,
		{"list", "poolsets.berth.dev"}:                             fallback,
		{"list", "storageclasses.storage.k8s.io"}:                  fallback,
		{"patch", "localsnapshots.berth.dev"}:                      snapshot,
		{"patch", "localsnapshots.berth.dev/status"}:               snapshot,
		{"patch", "csistoragecapacities.storage.k8s.io"}:           moved,
		{"patch", "events.events.k8s.io"}:                          repeated,
		{"list", "persistentvolumes"}:                              purged,
		{"list", "volumesnapshotcontents.snapshot.storage.k8s.io"}: purged,
	})
}

// published is the capacity that the agent tells the scheduler of.
func (a *agentProcess) published() int64 {
	a.t.Helper()
	list := &storagev1.CSIStorageCapacityList{}
	if err := server.admin.List(a.t.Context(), list, client.InNamespace(namespace)); err != nil {
		a.t.Fatal(err)
	}
	for _, c := range list.Items {
		if c.NodeTopology.MatchLabels[v1alpha1.TopologyKeyNode] == a.node {
			return c.Capacity.Value()
		}
	}
	return 0
}
