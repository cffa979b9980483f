// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

// knownPVs are the PersistentVolumes seen, by name, with their handles.
type knownPVs map[string]string

func (k knownPVs) Exists(name string) bool { _, ok := k[name]; return ok }

func (k knownPVs) WithHandle(handle string) []string {
	var names []string
	for name, h := range k {
		if h == handle {
			names = append(names, name)
		}
	}
	return names
}

func class(params map[string]string) *storagev1.StorageClass {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: berth.DriverName, Parameters: params, VolumeBindingMode: &wait}
}

var lvmParams = map[string]string{"mode": "lvm", "pool": "fast"}

func claim(size string) *corev1.PersistentVolumeClaim {
	name := "fast"
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "c1a1"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: &name,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
}

func options(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node string) controller.ProvisionOptions {
	return controller.ProvisionOptions{StorageClass: class, PVName: "pvc-" + string(claim.UID), PVC: claim, SelectedNodeName: node}
}

func provisioner(c *provisiontest.Cluster, pvs knownPVs) *provision.Provisioner {
	return provision.NewProvisioner(c.Volumes, c.Client, pvs, slog.New(slog.DiscardHandler))
}

func TestProvisionMakesACompletePersistentVolume(t *testing.T) {
	t.Parallel()
	retain := corev1.PersistentVolumeReclaimRetain
	filesystem, block := corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock
	affinity := &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "topology.berth.dev/node", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
	tests := map[string]struct {
		class func(*storagev1.StorageClass)
		claim func(*corev1.PersistentVolumeClaim)
		want  corev1.PersistentVolumeSpec
	}{
		"lvm, defaults": {
			want: corev1.PersistentVolumeSpec{
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, VolumeMode: &filesystem,
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: "berth.dev", VolumeHandle: "pvc-c1a1", FSType: "ext4", VolumeAttributes: map[string]string{"mode": "lvm", "pool": "fast"},
				}},
			},
		},
		"what the class asks for": {
			class: func(c *storagev1.StorageClass) {
				c.Parameters = map[string]string{"mode": "device", "csi.storage.k8s.io/fstype": "xfs"}
				c.ReclaimPolicy, c.MountOptions = &retain, []string{"noatime"}
			},
			want: corev1.PersistentVolumeSpec{
				PersistentVolumeReclaimPolicy: retain, MountOptions: []string{"noatime"}, VolumeMode: &filesystem,
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: "berth.dev", VolumeHandle: "pvc-c1a1", FSType: "xfs", VolumeAttributes: map[string]string{"mode": "device"},
				}},
			},
		},
		"block": {
			claim: func(c *corev1.PersistentVolumeClaim) {
				c.Spec.VolumeMode, c.Spec.AccessModes = &block, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
			},
			want: corev1.PersistentVolumeSpec{
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, VolumeMode: &block,
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: "berth.dev", VolumeHandle: "pvc-c1a1", VolumeAttributes: map[string]string{"mode": "lvm", "pool": "fast"},
				}},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t)
			c.NewAgent(t, node, 10*gib)
			claim, class := claim("1Gi"), class(lvmParams)
			if test.claim != nil {
				test.claim(claim)
			}
			if test.class != nil {
				test.class(class)
			}
			pv, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class, node))
			if err != nil || state != controller.ProvisioningFinished {
				t.Fatalf("%v, %v", state, err)
			}
			test.want.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
			test.want.StorageClassName, test.want.NodeAffinity = "fast", affinity
			if test.want.AccessModes == nil {
				test.want.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
			}
			if diff := cmp.Diff(test.want, pv.Spec); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			lv := c.Tracker.Get("pvc-c1a1")
			if ref := lv.Spec.ClaimRef; ref == nil || ref.UID != claim.UID || ref.Name != "data" || ref.Namespace != "default" {
				t.Errorf("claimRef %+v", ref)
			}
		})
	}
}

// What cannot be is refused at once, with nothing made, in words that name the
// object and the way out.
func TestProvisionRefuses(t *testing.T) {
	t.Parallel()
	block := corev1.PersistentVolumeBlock
	group := "snapshot.storage.k8s.io"
	immediate := storagev1.VolumeBindingImmediate
	tests := map[string]struct {
		class func(*storagev1.StorageClass)
		claim func(*corev1.PersistentVolumeClaim)
		node  string
		says  []string
	}{
		"unknown mode": {class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"mode": "zfs"} }, says: []string{`StorageClass "fast"`, `unknown mode "zfs"`}},
		"misspelt":     {class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"mode": "device", "wype": "x"} }, says: []string{`did you mean "wipe"?`}},
		"RWX":          {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, says: []string{"ReadWriteMany", "use ReadWriteOnce"}},
		"ROX beside": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = append(c.Spec.AccessModes, corev1.ReadOnlyMany)
		}, says: []string{"ReadOnlyMany"}},
		"selector":   {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, says: []string{"spec.selector"}},
		"nothing":    {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests["storage"] = resource.MustParse("0") }, says: []string{"asks for 0"}},
		"no request": {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = nil }, says: []string{"spec.resources.requests.storage"}},
		"beyond counts": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests["storage"] = resource.MustParse("10Ei")
		}, says: []string{"more than any disk"}},
		"hostpath block": {
			class: func(c *storagev1.StorageClass) {
				c.Parameters = map[string]string{"mode": "hostpath", "pool": "local"}
			},
			claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block },
			says:  []string{"hostpath has no block volumes"},
		},
		"another namespace's snapshot": {
			claim: func(c *corev1.PersistentVolumeClaim) {
				elsewhere := "elsewhere"
				c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "monday", Namespace: &elsewhere}
			},
			says: []string{`VolumeSnapshot "monday" of namespace "elsewhere"`, "not supported"},
		},
		"binds immediately": {class: func(c *storagev1.StorageClass) { c.VolumeBindingMode = &immediate }, node: "-", says: []string{"WaitForFirstConsumer"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t)
			claim, class := claim("1Gi"), class(lvmParams)
			if test.claim != nil {
				test.claim(claim)
			}
			if test.class != nil {
				test.class(class)
			}
			selected := node
			if test.node == "-" {
				selected = ""
			}
			_, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class, selected))
			if err == nil || state != controller.ProvisioningFinished {
				t.Fatalf("%v, %v", state, err)
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("the library will repeat it every few seconds: %v", err)
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if got := c.Requests(); len(got) != 0 {
				t.Errorf("asked %v", got)
			}
		})
	}
}

func TestProvisionLeavesPopulatorsAlone(t *testing.T) {
	t.Parallel()
	group := "backup.example.com"
	claim := claim("1Gi")
	claim.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: &group, Kind: "Backup", Name: "b"}
	c := provisiontest.New(t)
	_, state, err := provisioner(c, nil).Provision(t.Context(), options(claim, class(lvmParams), node))
	if _, ok := err.(*controller.IgnoredError); !ok || state != controller.ProvisioningFinished { //nolint:errorlint // the library asserts the type itself
		t.Errorf("%v, %#v", state, err)
	}
}

func TestProvisionImmediateWithOneNode(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t)
	c.NewAgent(t, node, 10*gib)
	class := class(lvmParams)
	class.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: berth.TopologyKeyNode, Values: []string{node}}}}}
	if _, _, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim("1Gi"), class, "")); err != nil {
		t.Fatal(err)
	}
	// A node that is full is the last word then: there is no other to try.
	big := claim("100Gi")
	big.UID = "b16"
	_, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(big, class, ""))
	if state != controller.ProvisioningFinished || err == nil {
		t.Errorf("%v, %v", state, err)
	}
}

// The capacity the scheduler saw was stale: the claim goes back to it, and the
// first node keeps nothing.
func TestProvisionReschedules(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{berth.ReasonNoSpace, berth.ReasonPoolNotFound, berth.ReasonToolMissing} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t)
			full, roomy := c.NewAgent(t, node, 10*gib), c.NewAgent(t, "node2", 10*gib)
			full.Answer(func(*berth.LocalVolume) (string, string) { return reason, "so it is" })
			p := provisioner(c, nil)
			_, state, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node))
			if state != controller.ProvisioningReschedule || err == nil || !strings.Contains(err.Error(), "so it is") {
				t.Fatalf("%v, %v", state, err)
			}
			pv, state, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), "node2"))
			if err != nil || state != controller.ProvisioningFinished {
				t.Fatalf("%v, %v", state, err)
			}
			if got := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; got != "node2" {
				t.Errorf("affinity to %s", got)
			}
			if full.Carved() != 0 || roomy.Carved() != 1 {
				t.Errorf("node1 holds %d, node2 %d", full.Carved(), roomy.Carved())
			}
		})
	}
}

func TestProvisionInBackgroundThenFinishes(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.Pause()
	p := provisioner(c, nil)
	if _, state, err := p.Provision(within(t, 200*time.Millisecond), options(claim("1Gi"), class(lvmParams), node)); state != controller.ProvisioningInBackground {
		t.Fatalf("%v, %v", state, err)
	}
	agent.Resume()
	// The claim is deleted meanwhile: the library goes on with the one it knew, and
	// the volume ends as a PersistentVolume that Kubernetes then reclaims.
	if _, state, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node)); state != controller.ProvisioningFinished || err != nil {
		t.Fatalf("%v, %v", state, err)
	}
	if agent.Made() != 1 {
		t.Errorf("made %d", agent.Made())
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t)
	agent := c.NewAgent(t, node, 10*gib)
	pvs := knownPVs{}
	p := provisioner(c, pvs)
	pv, _, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node))
	if err != nil {
		t.Fatal(err)
	}
	pv.UID = "the-pv"
	pvs[pv.Name], pvs["copied"] = pv.Spec.CSI.VolumeHandle, pv.Spec.CSI.VolumeHandle
	if err := p.Delete(within(t, 10*time.Second), pv); err == nil || !strings.Contains(err.Error(), `"copied"`) || agent.Carved() != 1 {
		t.Fatalf("deleted under another PersistentVolume: %v", err)
	}
	delete(pvs, "copied")
	if !p.Driven("c1a1") {
		t.Error("nobody is at work for a claim whose PersistentVolume is being saved")
	}
	if !p.ShouldDelete(t.Context(), pv) {
		t.Error("held back before anything was deleted")
	}
	if p.Driven("c1a1") {
		t.Error("its PersistentVolume was seen, and somebody is at work for the claim still")
	}
	if err := p.Delete(within(t, 10*time.Second), pv); err != nil || agent.Carved() != 0 {
		t.Fatalf("%v, %d left", err, agent.Carved())
	}
	if p.ShouldDelete(t.Context(), pv) {
		t.Error("not held back right after")
	}
	eventually(t, "it is held back no more", func() bool { return p.ShouldDelete(t.Context(), pv) })
	foreign := pv.DeepCopy()
	foreign.Spec.CSI.Driver = "other.example.com"
	var ignored *controller.IgnoredError
	if err := p.Delete(t.Context(), foreign); !errors.As(err, &ignored) {
		t.Errorf("foreign volume: %v", err)
	}
}

func FuzzCheckClaim(f *testing.F) {
	f.Add("1Gi", "ReadWriteOnce", false)
	f.Add("-1", "ReadWriteMany", true)
	f.Add("9223372036854775807", "ReadWriteOncePod", false)
	f.Fuzz(func(t *testing.T, size, mode string, isBlock bool) {
		quantity, err := resource.ParseQuantity(size)
		if err != nil {
			return // not of the form that reaches us
		}
		c := claim("1Gi")
		c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(mode)}
		if isBlock {
			block := corev1.PersistentVolumeBlock
			c.Spec.VolumeMode = &block
		}
		if provision.CheckClaim(c, provision.Parameters{Mode: berth.ModeLVM, Pools: []string{"p"}}) != nil {
			return
		}
		bytes := provision.SizeBytes(c)
		if bytes < 1 || bytes == math.MaxInt64 || resource.NewQuantity(bytes, resource.BinarySI).Cmp(quantity) < 0 {
			t.Errorf("%s became %d bytes", size, bytes)
		}
		if mode != "ReadWriteOnce" && mode != "ReadWriteOncePod" {
			t.Errorf("accepted access mode %q", mode)
		}
	})
}
