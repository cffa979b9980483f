// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	snapshottedDriver = "snapshots.e2e.berth.dev"
	snapshotAPI       = "snapshot.storage.k8s.io/v1"
)

// That the cluster's part of snapshots works, the CRDs, the snapshot-controller and
// csi-snapshotter, is shown with a driver that has nothing else: then it is Berth's fault
// if its own fail.
var _ = Describe("The testbed's snapshot sidecars", Label("testbed"), func() {
	It("take a snapshot and delete it", func(ctx SpecContext) {
		testbed, ok := suite.hosts.(TestbedHosts)
		if !ok {
			Skip("the cluster is not the testbed")
		}
		driver := &snapshotDriver{taken: make(chan string, 1), deleted: make(chan string, 1)}
		socket := filepath.Join(GinkgoT().TempDir(), "csi.sock")
		driver.serve(ctx, socket)
		sidecar := exec.CommandContext(ctx, testbed.testbed.Program("csi-snapshotter"),
			"--csi-address="+socket, "--kubeconfig="+options.kubeconfig, "--leader-election=false")
		sidecar.Stdout, sidecar.Stderr = GinkgoWriter, GinkgoWriter
		Expect(sidecar.Start()).To(Succeed())
		DeferCleanup(func() {
			Expect(sidecar.Process.Kill()).To(Succeed())
			_ = sidecar.Wait() // It was killed.
		})

		space := newSpace(ctx)
		source := boundByHand(ctx, space.Namespace)
		class := snapshotObject("VolumeSnapshotClass", "", space.Namespace)
		class.Object["driver"], class.Object["deletionPolicy"] = snapshottedDriver, "Delete"
		Expect(suite.client.Create(ctx, class)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(suite.client.Delete(ctx, class)).To(Succeed()) })
		snapshot := snapshotObject("VolumeSnapshot", space.Namespace, "taken")
		snapshot.Object["spec"] = map[string]any{
			"volumeSnapshotClassName": class.GetName(),
			"source":                  map[string]any{"persistentVolumeClaimName": source},
		}
		Expect(suite.client.Create(ctx, snapshot)).To(Succeed())
		Expect(space.Await(ctx, snapshot, func(object client.Object, _ bool) (bool, error) {
			ready, _, err := unstructured.NestedBool(object.(*unstructured.Unstructured).Object, "status", "readyToUse")
			return ready, err
		})).To(Succeed())
		Expect(driver.taken).To(Receive(Equal(snapshottedHandle(space.Namespace))))
		Expect(space.Delete(ctx, snapshot)).To(Succeed())
		Eventually(driver.deleted).WithContext(ctx).WithTimeout(patience).Should(Receive(HavePrefix("snapshot-")))
	}, SpecTimeout(patience))
})

func snapshotObject(kind, namespace, name string) *unstructured.Unstructured {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetAPIVersion(snapshotAPI)
	object.SetKind(kind)
	object.SetNamespace(namespace)
	object.SetName(name)
	return object
}

func snapshottedHandle(namespace string) string { return "volume-of-" + namespace }

// boundByHand makes a claim and a volume of the driver that are bound to each other.
func boundByHand(ctx context.Context, namespace string) (claim string) {
	GinkgoHelper()
	none, capacity := "", corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: capacity, AccessModes: modes, StorageClassName: none,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:                      &corev1.ObjectReference{Namespace: namespace, Name: "source"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: snapshottedDriver, VolumeHandle: snapshottedHandle(namespace),
			}},
		},
	}
	Expect(suite.client.Create(ctx, volume)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(suite.client.Delete(ctx, volume)).To(Succeed()) })
	object := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "source", Namespace: namespace},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &none, VolumeName: namespace, AccessModes: modes,
			Resources: corev1.VolumeResourceRequirements{Requests: capacity},
		},
	}
	Expect(suite.client.Create(ctx, object)).To(Succeed())
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
		g.Expect(object.Status.Phase).To(Equal(corev1.ClaimBound))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(500 * time.Millisecond).Should(Succeed())
	return object.Name
}

// snapshotDriver is a CSI driver that takes snapshots, of nothing.
type snapshotDriver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	// taken and deleted get the volume of the first snapshot, and its own ID.
	taken, deleted chan string
}

// serve listens until the spec ends.
func (d *snapshotDriver) serve(ctx context.Context, socket string) {
	GinkgoHelper()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	Expect(err).NotTo(HaveOccurred())
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	DeferCleanup(func() {
		server.Stop()
		Expect(<-served).NotTo(HaveOccurred())
	})
}

// GetPluginInfo implements csi.IdentityServer.
func (d *snapshotDriver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: snapshottedDriver, VendorVersion: "1"}, nil
}

// GetPluginCapabilities implements csi.IdentityServer.
func (d *snapshotDriver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}},
	}}}, nil
}

// Probe implements csi.IdentityServer.
func (d *snapshotDriver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *snapshotDriver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{
			Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		}},
	}}}, nil
}

// CreateSnapshot implements csi.ControllerServer.
func (d *snapshotDriver) CreateSnapshot(_ context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	select {
	case d.taken <- request.GetSourceVolumeId():
	default: // It was asked again.
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId: fmt.Sprintf("snapshot-%s", request.GetName()), SourceVolumeId: request.GetSourceVolumeId(),
		SizeBytes: 1 << 20, CreationTime: timestamppb.Now(), ReadyToUse: true,
	}}, nil
}

// DeleteSnapshot implements csi.ControllerServer.
func (d *snapshotDriver) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	select {
	case d.deleted <- request.GetSnapshotId():
	default: // It was asked again.
	}
	return &csi.DeleteSnapshotResponse{}, nil
}
