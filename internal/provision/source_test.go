// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

const home = "node7"

// standing is what a claim may begin as a copy of, all of it on the node home: a volume of
// 2 GiB with xfs, its claim "other", and a snapshot of it, "monday".
func standing(t *testing.T, change func(map[string]client.Object)) *provisiontest.Cluster {
	t.Helper()
	ready := []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Made"}}
	size := resource.MustParse("2Gi")
	snapshot := func(kind, namespace, name string, object map[string]any) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: object}
		u.SetAPIVersion("snapshot.storage.k8s.io/v1")
		u.SetKind(kind)
		u.SetNamespace(namespace)
		u.SetName(name)
		u.SetUID("5a")
		return u
	}
	objects := map[string]client.Object{
		"claim": &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "other", UID: "0b"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pvc-0b"},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		"pv": &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-0b", UID: "0c"},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: berth.DriverName, VolumeHandle: "pvc-0b"},
			}},
		},
		"volume": &berth.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-0b", UID: "0d"},
			Spec: berth.LocalVolumeSpec{
				NodeName: home, Mode: berth.ModeLVM, Pool: "fast", SizeBytes: 2 * gib, VolumeMode: berth.VolumeFilesystem, FSType: "xfs",
				ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "other", UID: "0b"},
			},
			Status: berth.LocalVolumeStatus{Capacity: &size, Conditions: ready},
		},
		"local": &berth.LocalSnapshot{
			ObjectMeta: metav1.ObjectMeta{Name: "snapshot-5a", UID: "0e"},
			Spec:       berth.LocalSnapshotSpec{NodeName: home, Pool: "fast", VolumeName: "pvc-0b", VolumeUID: "0d"},
			Status: berth.LocalSnapshotStatus{
				RestoreSize: &size, VolumeMode: berth.VolumeFilesystem, FSType: "xfs", Conditions: ready,
			},
		},
		"snapshot": snapshot("VolumeSnapshot", "default", "monday", map[string]any{
			"status": map[string]any{"boundVolumeSnapshotContentName": "content", "readyToUse": true},
		}),
		"content": snapshot("VolumeSnapshotContent", "", "content", map[string]any{
			"spec":   map[string]any{"driver": berth.DriverName, "volumeSnapshotRef": map[string]any{"uid": "5a"}},
			"status": map[string]any{"snapshotHandle": "snapshot-5a"},
		}),
	}
	if change != nil {
		change(objects)
	}
	var list []client.Object
	for _, object := range objects {
		list = append(list, object)
	}
	return provisiontest.New(t, list...)
}

func wantsClone(c *corev1.PersistentVolumeClaim) {
	c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
}

func wantsSnapshot(c *corev1.PersistentVolumeClaim) {
	group := "snapshot.storage.k8s.io"
	c.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "monday"}
}

// A copy is made where its source is, with the filesystem of its source, whatever node the
// scheduler chose.
func TestProvisionCopies(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wants  func(*corev1.PersistentVolumeClaim)
		source berth.VolumeSource
	}{
		"of a claim":    {wantsClone, berth.VolumeSource{Kind: berth.SourceVolume, Name: "pvc-0b", UID: "0d"}},
		"of a snapshot": {wantsSnapshot, berth.VolumeSource{Kind: berth.SourceSnapshot, Name: "snapshot-5a", UID: "0e"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := standing(t, nil)
			c.NewAgent(t, home, 10*gib)
			claim, class := claim("3Gi"), class(map[string]string{"mode": "lvm", "pool": "fast", "mkfsOptions": "-m 0"})
			test.wants(claim)
			for range 2 {
				pv, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class, node))
				if err != nil || state != controller.ProvisioningFinished {
					t.Fatalf("%v, %v", state, err)
				}
				terms := pv.Spec.NodeAffinity.Required.NodeSelectorTerms
				if got := terms[0].MatchExpressions[0].Values; len(got) != 1 || got[0] != home {
					t.Errorf("its affinity is to %q", got)
				}
				if pv.Spec.CSI.FSType != "xfs" {
					t.Errorf("its filesystem is %q", pv.Spec.CSI.FSType)
				}
			}
			lv := c.Tracker.Get("pvc-c1a1")
			if lv.Spec.Source == nil || *lv.Spec.Source != test.source || lv.Spec.NodeName != home || lv.Spec.SizeBytes != 3*gib || lv.Spec.MkfsOptions != nil {
				t.Errorf("the volume is %+v", lv.Spec)
			}
		})
	}
}

// A directory is copied in the mode hostpath, to where the class says.
func TestProvisionCopiesOfDirectories(t *testing.T) {
	t.Parallel()
	for name, wants := range map[string]func(*corev1.PersistentVolumeClaim){"of a claim": wantsClone, "of a snapshot": wantsSnapshot} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := standing(t, directories)
			c.NewAgent(t, home, 10*gib)
			claim, class := claim("3Gi"), class(map[string]string{"mode": "hostpath", "pool": "fast", "pathTemplate": "{{.PV.Name}}"})
			wants(claim)
			if _, _, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class, node)); err != nil {
				t.Fatal(err)
			}
			lv := c.Tracker.Get("pvc-c1a1")
			if lv.Spec.Source == nil || lv.Spec.Mode != berth.ModeHostpath || lv.Spec.NodeName != home || lv.Spec.FSType != "" || lv.Spec.Directory != "pvc-c1a1" {
				t.Errorf("the volume is %+v", lv.Spec)
			}
		})
	}
}

// The source of a copy may go while its node makes it: the copy is handed out all the same.
func TestProvisionCopiesOfWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, wants := range map[string]func(*corev1.PersistentVolumeClaim){"of a claim": wantsClone, "of a snapshot": wantsSnapshot} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := map[string]client.Object{}
			c := standing(t, func(o map[string]client.Object) {
				maps.Copy(objects, o)
				o["node"] = nodeObject(home)
			})
			agent := c.NewAgent(t, home, 10*gib)
			agent.Pause()
			claim, p := claim("3Gi"), provisioner(c, nil)
			wants(claim)
			if _, state, err := p.Provision(within(t, 200*time.Millisecond), options(claim, class(lvmParams), node)); state != controller.ProvisioningInBackground {
				t.Fatalf("%v, %v", state, err)
			}
			for _, gone := range []string{"claim", "pv", "snapshot", "content"} {
				if err := c.Backdoor.Delete(t.Context(), objects[gone]); err != nil {
					t.Fatal(err)
				}
			}
			agent.Resume()
			pv, state, err := p.Provision(within(t, 10*time.Second), options(claim, class(lvmParams), node))
			if err != nil || state != controller.ProvisioningFinished {
				t.Fatalf("%v, %v", state, err)
			}
			if got := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; got != home || pv.Spec.CSI.FSType != "xfs" {
				t.Errorf("on %s with %s", got, pv.Spec.CSI.FSType)
			}
		})
	}
}

// directories makes what is standing be of mode hostpath.
func directories(o map[string]client.Object) {
	v, s := o["volume"].(*berth.LocalVolume), o["local"].(*berth.LocalSnapshot)
	v.Spec.Mode, v.Spec.FSType, s.Status.FSType = berth.ModeHostpath, "", ""
	s.Status.Hostpath = &berth.HostpathRecord{Root: "/srv", Directory: "snapshots/0e", RootID: "r"}
}

func TestProvisionCopiesRefused(t *testing.T) {
	t.Parallel()
	block := corev1.PersistentVolumeBlock
	for name, test := range map[string]struct {
		change func(map[string]client.Object)
		wants  func(*corev1.PersistentVolumeClaim)
		params map[string]string
		size   string
		// final: the claim or the class must change.
		final bool
		says  string
	}{
		"no such snapshot": {func(o map[string]client.Object) { delete(o, "snapshot") }, wantsSnapshot, nil, "", false, `VolumeSnapshot "monday", which the claim is to be a copy of, is not there`},
		"no such claim":    {func(o map[string]client.Object) { delete(o, "claim") }, wantsClone, nil, "", false, `PersistentVolumeClaim "other"`},
		"snapshot not ready": {func(o map[string]client.Object) {
			o["snapshot"].(*unstructured.Unstructured).Object["status"] = map[string]any{}
		}, wantsSnapshot, nil, "", false, "not ready to use yet"},
		"another driver's":   {func(o map[string]client.Object) { set(o["content"], "other.example.com", "spec", "driver") }, wantsSnapshot, nil, "", true, `driver "other.example.com"`},
		"another's content":  {func(o map[string]client.Object) { set(o["content"], "ff", "spec", "volumeSnapshotRef", "uid") }, wantsSnapshot, nil, "", true, "is not bound to"},
		"it is gone":         {func(o map[string]client.Object) { delete(o, "local") }, wantsSnapshot, nil, "", true, `LocalSnapshot "snapshot-5a"`},
		"claim not bound":    {func(o map[string]client.Object) { o["claim"].(*corev1.PersistentVolumeClaim).Spec.VolumeName = "" }, wantsClone, nil, "", false, "is not bound yet"},
		"a claim of others":  {func(o map[string]client.Object) { o["pv"].(*corev1.PersistentVolume).Spec.CSI.Driver = "other" }, wantsClone, nil, "", true, "volume of another driver"},
		"its volume is gone": {func(o map[string]client.Object) { delete(o, "volume") }, wantsClone, nil, "", true, `LocalVolume "pvc-0b"`},
		"a whole disk":       {func(o map[string]client.Object) { o["volume"].(*berth.LocalVolume).Spec.Mode = berth.ModeDevice }, wantsClone, nil, "", true, "mode device, which has no copies"},
		"a directory to lvm": {directories, wantsSnapshot, nil, "", true, `makes volumes of mode lvm in pool "fast"`},
		"another pool":       {nil, wantsClone, map[string]string{"mode": "lvm", "pool": "slow"}, "", true, `in pool "fast", and the StorageClass makes volumes of mode lvm in pool "slow"`},
		"less than it has":   {nil, wantsSnapshot, nil, "1Gi", true, "has 2Gi, and the claim asks for 1Gi"},
		"an encrypted snapshot": {func(o map[string]client.Object) {
			o["local"].(*berth.LocalSnapshot).Status.Encryption = &berth.EncryptionStatus{Format: berth.EncryptionLUKS2, State: berth.EncryptionSealed, UUID: "0d"}
		}, wantsSnapshot, nil, "", true, `has the encryption "luks2", and the StorageClass asks for ""`},
		"an encrypted claim": {func(o map[string]client.Object) {
			v := o["volume"].(*berth.LocalVolume)
			v.Spec.Encryption, v.Status.Encryption = berth.EncryptionLUKS2, &berth.EncryptionStatus{Format: berth.EncryptionLUKS2, State: berth.EncryptionSealed, UUID: "0d"}
		}, wantsClone, nil, "", true, `has the encryption "luks2", and the StorageClass asks for ""`},
		"one that no pod had": {func(o map[string]client.Object) {
			v := o["volume"].(*berth.LocalVolume)
			v.Spec.Encryption = berth.EncryptionLUKS2
		}, wantsClone, nil, "", false, "is encrypted when a pod uses it first"},
		"another volume mode": {nil, func(c *corev1.PersistentVolumeClaim) { wantsClone(c); c.Spec.VolumeMode = &block }, nil, "", true, "volumeMode Filesystem, and the claim of Block"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := standing(t, test.change)
			size, params := "2Gi", lvmParams
			if test.size != "" {
				size = test.size
			}
			if test.params != nil {
				params = test.params
			}
			claim := claim(size)
			test.wants(claim)
			_, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class(params), node))
			if err == nil || state != controller.ProvisioningFinished || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v, %v", state, err)
			}
			if final := status.Code(err) == codes.InvalidArgument; final != test.final {
				t.Errorf("final %v: %v", final, err)
			}
			if lv := c.Tracker.Get("pvc-c1a1"); lv != nil {
				t.Errorf("made %+v", lv.Spec)
			}
		})
	}
}

func set(object client.Object, value string, fields ...string) {
	if err := unstructured.SetNestedField(object.(*unstructured.Unstructured).Object, value, fields...); err != nil {
		panic(err)
	}
}
