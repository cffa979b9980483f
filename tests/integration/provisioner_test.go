// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const gib = int64(1) << 30

func storageClass(t *testing.T, name string, parameters map[string]string) {
	t.Helper()
	wait, expand := storagev1.VolumeBindingWaitForFirstConsumer, true
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: v1alpha1.DriverName,
		Parameters: parameters, VolumeBindingMode: &wait, AllowVolumeExpansion: &expand,
	}
	if err := server.admin.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.admin.Delete(context.Background(), class) })
}

// newClaim makes a claim as it is when the scheduler has chosen the node and
// kube-controller-manager has called the provisioner.
func newClaim(t *testing.T, name, class, node, size string) *corev1.PersistentVolumeClaim {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	if node != "" {
		claim.Annotations = map[string]string{
			"volume.kubernetes.io/storage-provisioner": v1alpha1.DriverName,
			"volume.kubernetes.io/selected-node":       node,
		}
	}
	if err := server.admin.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	return claim
}

func exists(t *testing.T, obj client.Object, name string) bool {
	t.Helper()
	err := server.admin.Get(t.Context(), types.NamespacedName{Name: name}, obj)
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// setPhase does what kube-controller-manager does to a PersistentVolume.
func setPhase(t *testing.T, name string, phase corev1.PersistentVolumePhase) {
	t.Helper()
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := []byte(`{"status":{"phase":"` + string(phase) + `"}}`)
	if err := server.admin.Status().Patch(t.Context(), pv, client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
}

// unprotect does the same to one that nothing uses any more.
func unprotect(t *testing.T, name string) {
	t.Helper()
	pv := &corev1.PersistentVolume{}
	if !exists(t, pv, name) {
		return
	}
	patch := client.MergeFrom(pv.DeepCopy())
	pv.Finalizers = slices.DeleteFunc(pv.Finalizers, func(f string) bool { return f == "kubernetes.io/pv-protection" })
	if err := client.IgnoreNotFound(server.admin.Patch(t.Context(), pv, patch)); err != nil {
		t.Fatal(err)
	}
}

// The whole command against a real apiserver, under its own RBAC, with an agent
// that carves numbers. The steps share one process where they can.
func TestProvisioner(t *testing.T) {
	p := newProcess(t)
	storageClass(t, "it-fast", map[string]string{"mode": "lvm", "pool": "fast"})
	for _, name := range []string{"it-small", "it-large"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := server.admin.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.admin.Delete(context.Background(), node) })
	}
	small, large := newNumbersAgent(t, "it-small", 2*gib), newNumbersAgent(t, "it-large", 100*gib)
	p.start()

	var pvName string
	t.Run("a claim costs two requests of ours", func(t *testing.T) {
		before := requests(t, "localvolumes", "persistentvolumes", "persistentvolumeclaims", "nodes")
		claim := newClaim(t, "first", "it-fast", "it-small", "1Gi")
		pvName = "pvc-" + string(claim.UID)
		pv := &corev1.PersistentVolume{}
		eventually(t, "the PersistentVolume", func() bool { return exists(t, pv, pvName) })
		got := since(before, requests(t, "localvolumes", "persistentvolumes", "persistentvolumeclaims", "nodes"))
		delete(got, "GET persistentvolumes") // the test's own
		want := map[string]int{"POST persistentvolumeclaims": 1, "POST localvolumes": 1, "PATCH localvolumes/status": 1, "POST persistentvolumes": 1}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.ClaimRef.UID != claim.UID || pv.Spec.CSI.FSType != "ext4" {
			t.Errorf("spec %+v", pv.Spec)
		}
	})

	t.Run("it grows through CSI", func(t *testing.T) {
		controller := controllerClient(t, p.socket)
		expand := func(bytes int64) (*csi.ControllerExpandVolumeResponse, error) {
			return controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: pvName, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}})
		}
		resp, err := expand(2 * gib)
		if err != nil || resp.GetCapacityBytes() != 2*gib || !resp.GetNodeExpansionRequired() {
			t.Errorf("%v, %v", resp, err)
		}
		if _, err := expand(50 * gib); status.Code(err) != codes.OutOfRange {
			t.Errorf("too large: %v", err)
		}
	})

	t.Run("a full node is given back to the scheduler", func(t *testing.T) {
		claim := newClaim(t, "second", "it-fast", "it-small", "5Gi")
		eventually(t, "the node is taken off the claim", func() bool {
			if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
				t.Fatal(err)
			}
			return claim.Annotations["volume.kubernetes.io/selected-node"] == ""
		})
		if exists(t, &v1alpha1.LocalVolume{}, "pvc-"+string(claim.UID)) {
			t.Error("something is left on the first node")
		}
		claim.Annotations["volume.kubernetes.io/selected-node"] = "it-large"
		if err := server.admin.Update(t.Context(), claim); err != nil {
			t.Fatal(err)
		}
		pv := &corev1.PersistentVolume{}
		eventually(t, "the PersistentVolume", func() bool { return exists(t, pv, "pvc-"+string(claim.UID)) })
		if got := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values; !slices.Equal(got, []string{"it-large"}) {
			t.Errorf("affinity to %v", got)
		}
	})

	t.Run("a deletion costs three requests of ours", func(t *testing.T) {
		setPhase(t, pvName, corev1.VolumeBound)
		before := requests(t, "localvolumes", "persistentvolumes", "persistentvolumeclaims", "nodes")
		setPhase(t, pvName, corev1.VolumeReleased)
		eventually(t, "our finalizer is off", func() bool {
			pv := &corev1.PersistentVolume{}
			return !exists(t, pv, pvName) || pv.DeletionTimestamp != nil && !slices.Contains(pv.Finalizers, "external-provisioner.volume.kubernetes.io/finalizer")
		})
		unprotect(t, pvName)
		eventually(t, "the PersistentVolume is gone", func() bool { return !exists(t, &corev1.PersistentVolume{}, pvName) })
		time.Sleep(2 * time.Second) //nolint:forbidigo // what comes too late would come now, and nothing says that nothing comes
		got := since(before, requests(t, "localvolumes", "persistentvolumes", "persistentvolumeclaims", "nodes"))
		delete(got, "GET persistentvolumes")
		want := map[string]int{
			"PATCH persistentvolumes/status": 1, "DELETE localvolumes": 1, "PATCH localvolumes": 1, "DELETE persistentvolumes": 1,
			"PATCH persistentvolumes": 2,
		} // ours, and unprotect's
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		if small.volumes() != 0 {
			t.Errorf("%d volumes are left on the node", small.volumes())
		}
	})

	t.Run("killed while a node works it goes on", func(t *testing.T) {
		large.pause(true)
		claim := newClaim(t, "third", "it-fast", "it-large", "1Gi")
		lv := &v1alpha1.LocalVolume{}
		eventually(t, "the LocalVolume", func() bool { return exists(t, lv, "pvc-"+string(claim.UID)) })
		p.kill()
		large.pause(false)
		if err := large.act(lv.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		p.start()
		eventually(t, "the PersistentVolume", func() bool { return exists(t, &corev1.PersistentVolume{}, "pvc-"+string(claim.UID)) })
		again := &v1alpha1.LocalVolume{}
		if !exists(t, again, lv.Name) || again.UID != lv.UID {
			t.Error("it was made twice")
		}
	})

	t.Run("what is finished while nobody waits is picked up at once", func(t *testing.T) {
		large.pause(true)
		claim := newClaim(t, "fourth", "it-fast", "it-large", "1Gi")
		lv := &v1alpha1.LocalVolume{}
		eventually(t, "the LocalVolume", func() bool { return exists(t, lv, "pvc-"+string(claim.UID)) })
		eventually(t, "the wait ran out", func() bool { return strings.Contains(eventNotes(t, claim.Name), "has not answered") })
		large.pause(false)
		began := time.Now()
		if err := large.act(lv.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the PersistentVolume", func() bool { return exists(t, &corev1.PersistentVolume{}, "pvc-"+string(claim.UID)) })
		t.Logf("after %s", time.Since(began))
	})

	t.Run("a claim that waits in vain is told why", func(t *testing.T) {
		storageClass(t, "it-broken", map[string]string{"mode": "lvm", "pol": "fast"})
		newClaim(t, "fifth", "it-broken", "", "1Gi")
		eventually(t, "the event", func() bool {
			return strings.Contains(eventNotes(t, "fifth"), `parameter "pol" is not known; did you mean "pool"?`)
		})
		newClaim(t, "sixth", "it-fast", "", "1Gi")
		eventually(t, "the event", func() bool {
			return strings.Contains(eventNotes(t, "sixth"), `PoolSet "fast" of StorageClass "it-fast" does not exist`)
		})
	})

	t.Run("a replica that stands by follows nothing until it is asked", func(t *testing.T) {
		before := watches(t, "localvolumes") + watches(t, "persistentvolumeclaims") + watches(t, "persistentvolumes")
		standby := p.replica()
		standby.launch()
		standby.eventually("it stands by", func() bool {
			return standby.get("/readyz") == "ok\n" && strings.Contains(standby.get("/metrics"), `leader_election_master_status{name="berth-provisioner"} 0`)
		})
		if following := watches(t, "localvolumes") + watches(t, "persistentvolumeclaims") + watches(t, "persistentvolumes"); following != before {
			t.Errorf("%d watches of what the leader follows, %d without the replica", following, before)
		}
		// csi-resizer's own election may choose the one beside it.
		volumes := &v1alpha1.LocalVolumeList{}
		if err := server.admin.List(t.Context(), volumes); err != nil {
			t.Fatal(err)
		}
		seen, err := controllerClient(t, standby.socket).ListVolumes(t.Context(), &csi.ListVolumesRequest{})
		if err != nil || len(seen.GetEntries()) != len(volumes.Items) || len(volumes.Items) == 0 {
			t.Errorf("the replica tells of %d volumes (%v), there are %d", len(seen.GetEntries()), err, len(volumes.Items))
		}
		if took := standby.stop(); took > 10*time.Second {
			t.Errorf("took %s to stop", took)
		}
		asleep := p.replica()
		asleep.launch()
		asleep.eventually("it stands by", func() bool { return asleep.get("/readyz") == "ok\n" })
		if took := asleep.stop(); took > 10*time.Second {
			t.Errorf("asleep, it took %s to stop", took)
		}
	})

	t.Run("it is small and stops in time", func(t *testing.T) {
		rss := residentMiB(t, p.cmd.Process.Pid)
		t.Logf("resident: %d MiB", rss)
		if rss > 60 {
			t.Errorf("%d MiB resident, the goal is 60", rss)
		}
		if took := p.stop(); took > 10*time.Second {
			t.Errorf("took %s to stop", took)
		}
		lease := &coordinationv1.Lease{}
		if err := server.admin.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: "berth-provisioner"}, lease); err != nil {
			t.Fatal(err)
		}
		if lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" {
			t.Errorf("the lease is still held by %s", *lease.Spec.HolderIdentity)
		}
		for line := range strings.SplitSeq(p.log.String(), "\n") {
			if strings.Contains(line, "forbidden") {
				t.Errorf("the RBAC is too narrow: %s", line)
			}
		}
	})

	t.Run("no right is left over", func(t *testing.T) {
		const (
			snapshot = "snapshots are made through csi-snapshotter, which is not here"
			copied   = "a claim that is to begin as a copy"
			growth   = "a whole disk is asked for its size when it is to grow, and GetCapacity sums disks up"
			repeated = "an event that is repeated is counted"
			limits   = "a claim that names a VolumeAttributesClass"
			anew     = "an object is read past the cache where what the cache has may be old"
		)
		checkRights(t, "provisioner.yaml", provisioner, map[right]string{
			{"list", "blockdevices.berth.dev"}:                        growth,
			{"list", "csistoragecapacities.storage.k8s.io"}:           fallback,
			{"list", "persistentvolumeclaims"}:                        fallback,
			{"list", "persistentvolumes"}:                             fallback,
			{"list", "poolsets.berth.dev"}:                            fallback,
			{"list", "storageclasses.storage.k8s.io"}:                 fallback,
			{"list", "localvolumes.berth.dev"}:                        fallback,
			{"get", "localvolumes.berth.dev"}:                         anew,
			{"get", "persistentvolumeclaims"}:                         anew,
			{"get", "persistentvolumes"}:                              anew,
			{"patch", "events.events.k8s.io"}:                         repeated,
			{"get", "localsnapshots.berth.dev"}:                       snapshot,
			{"list", "localsnapshots.berth.dev"}:                      snapshot,
			{"watch", "localsnapshots.berth.dev"}:                     snapshot,
			{"create", "localsnapshots.berth.dev"}:                    snapshot,
			{"delete", "localsnapshots.berth.dev"}:                    snapshot,
			{"get", "volumesnapshots.snapshot.storage.k8s.io"}:        copied,
			{"get", "volumesnapshotcontents.snapshot.storage.k8s.io"}: copied,
			{"get", "volumeattributesclasses.storage.k8s.io"}:         limits,
		})
	})
}

// controllerClient calls the Controller service behind a socket.
func controllerClient(t *testing.T, socket string) csi.ControllerClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return csi.NewControllerClient(conn)
}

// eventNotes are the texts of the events of a claim.
func eventNotes(t *testing.T, claim string) string {
	t.Helper()
	list := &eventsv1.EventList{}
	if err := server.admin.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, event := range list.Items {
		if event.Regarding.Name == claim {
			notes = append(notes, event.Note)
		}
	}
	return strings.Join(notes, "\n")
}

func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Skip("no /proc to read the size from: ", err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatal("no VmRSS in /proc/PID/status")
	return 0
}
