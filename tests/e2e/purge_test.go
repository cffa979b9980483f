// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"context"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A left-over", Label("purge"), func() {
	// Serial: other specs look for what no object stands for.
	It("is adopted, and purged in two phases", Label("long"), Serial, func(ctx SpecContext) {
		class := suite.description.Classes.LVMRetain
		if class == "" {
			Skip("the cluster has no StorageClass with reclaimPolicy Retain")
		}
		space := newSpace(ctx)
		claim := kinds[0].claim("left")
		claim.Class = class
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "writer", Script: kinds[0].writeScript("left")}, "left"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "left")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "left")).To(Succeed())

		left := leftOver{local: local}
		By("refusing what has objects")
		left.ask(ctx, left.request())
		DeferCleanup(func(ctx SpecContext) { left.ask(ctx) }, NodeTimeout(time.Minute))
		left.await(ctx, v1alpha1.PurgeRefused)
		left.ask(ctx)

		By("taking its objects away by force")
		left.takeAway(ctx, space, volume)

		By("adopting it")
		adopted := left.adopt(ctx, space.Namespace+"/back")
		claimOf(ctx, space, "back", adopted)
		read, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "reader", Script: kinds[0].readScript("back")}, "back"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written), "what is in the volume")
		volume, err = space.AwaitBound(ctx, "back")
		Expect(err).NotTo(HaveOccurred())
		expectGone(ctx, local)
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "back")).To(Succeed())
		Expect(adopted.Status.LVM.LVUUID).To(Equal(local.Status.LVM.LVUUID))
		local, left = adopted, leftOver{local: adopted}
		left.takeAway(ctx, space, volume)

		By("putting it into quarantine")
		left.ask(ctx, left.request())
		purge := left.await(ctx, v1alpha1.PurgeQuarantined)
		Expect(purge.Holds).To(ContainSubstring(local.Name))
		expectHeld(ctx, local)

		By("confirming it")
		left.confirm(ctx, purge.Token)
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))

	It("is a snapshot, which is purged before its volume", Serial, func(ctx SpecContext) {
		class := suite.description.Classes.LVMRetain
		if class == "" {
			Skip("the cluster has no StorageClass with reclaimPolicy Retain")
		}
		space := newSpace(ctx)
		claim := kinds[0].claim("left")
		claim.Class = class
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "writer", Script: kinds[0].writeScript("left")}, "left"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "left")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		snapshot := takeSnapshot(ctx, space, "kept", "left")
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		left, leftSnapshot := leftOver{local: local}, leftOver{kind: v1alpha1.LeftOverSnapshot, local: &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{UID: snapshot.UID}, Spec: v1alpha1.LocalVolumeSpec{NodeName: snapshot.Spec.NodeName, Pool: snapshot.Spec.Pool},
			Status: v1alpha1.LocalVolumeStatus{LVM: snapshot.Status.LVM},
		}}

		By("refusing what has objects")
		left.ask(ctx, leftSnapshot.request())
		DeferCleanup(func(ctx SpecContext) { left.ask(ctx) }, NodeTimeout(time.Minute))
		leftSnapshot.await(ctx, v1alpha1.PurgeRefused)
		left.ask(ctx)

		By("taking away what leads to the snapshot")
		keepSnapshot(ctx, space, "kept")
		code, said, complained := runPlugin(ctx, "orphans", "list", "-o", "json")
		Expect(code).To(Equal(1), said+complained)
		Expect(said).To(And(ContainSubstring("localsnapshot/"+snapshot.Name), ContainSubstring("NoVolumeSnapshotContent")))
		byForce(ctx, snapshot)
		Expect(space.DeleteClaim(ctx, "left")).To(Succeed())
		left.takeAway(ctx, space, volume)

		By("refusing the volume as long as its snapshot is there")
		left.ask(ctx, left.request())
		Expect(left.await(ctx, v1alpha1.PurgeRefused).Message).To(ContainSubstring(string(snapshot.UID)))

		By("putting the snapshot into quarantine, and confirming that")
		left.ask(ctx, leftSnapshot.request())
		purge := leftSnapshot.await(ctx, v1alpha1.PurgeQuarantined)
		Expect(purge.Holds).To(And(ContainSubstring(snapshot.Name), ContainSubstring(local.Name)))
		expectHeld(ctx, local)
		leftSnapshot.confirm(ctx, purge.Token)
		if suite.description.Has(CanExec) {
			found, err := lookAt(ctx, snapshot.Spec.NodeName)
			Expect(err).NotTo(HaveOccurred())
			Expect(found.logicalVolumes).NotTo(ContainElement(ContainSubstring(string(snapshot.UID))))
		}
		expectHeld(ctx, local)

		By("purging its volume")
		left.ask(ctx, left.request())
		left.confirm(ctx, left.await(ctx, v1alpha1.PurgeQuarantined).Token)
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))
})

var _ = Describe("A whole disk that is left over", Label("purge"), func() {
	BeforeEach(func() { needs(CanPlugDisks) })

	// Serial: other specs look for what no object stands for.
	It("is purged in two phases, and is blank", Serial, func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-LEFTOVER", SizeBytes: smallDisk}
		space := newSpace(ctx)
		_, _, volume := writeOnDisk(ctx, space, node, disk)
		local := volumeOf(ctx, volume)
		held := awaitDisk(ctx, node, disk.Serial, "held by LocalVolume "+local.Name)
		where := node + "/" + held.Name

		By("refusing what has objects")
		code, said, complained := runPlugin(ctx, "orphans", "purge", where, "--yes")
		Expect(code).To(Equal(1), said+complained)
		Expect(said).To(ContainSubstring("there is a LocalVolume " + local.Name))

		By("taking its objects away by force")
		leaveDisk(ctx, space, volume, local)

		By("putting it into quarantine")
		code, said, complained = runPlugin(ctx, "orphans", "purge", where, "--wait=1m", "--yes")
		Expect(code).To(Equal(0), said+complained)
		Expect(said).To(And(ContainSubstring("It holds: volume "+local.Name), ContainSubstring("ext4")))
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(held), held)).To(Succeed())
		Expect(held.Status.Purges).To(HaveLen(1))
		Expect(held.Status.Purges[0].State).To(Equal(v1alpha1.PurgeQuarantined))
		Expect(held.Status.ClaimState).To(Equal(v1alpha1.ClaimStateClaimed))

		By("confirming it by another token")
		code, said, complained = runPlugin(ctx, "orphans", "purge", where, "--confirm=another", "--yes")
		Expect(code).To(Equal(1), said+complained)

		By("confirming it")
		code, said, complained = runPlugin(ctx, "orphans", "purge", where, "--confirm="+held.Status.Purges[0].Token, "--wait=1m", "--yes")
		Expect(code).To(Equal(0), said+complained)
		expectGone(ctx, local)
		clean := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(clean.Status.ClaimState).To(Equal(v1alpha1.ClaimStateUnclaimed))
	}, SpecTimeout(2*patience))

	// Serial: other specs look for what no object stands for.
	It("is adopted with what is on it, and is deleted as any volume", Serial, func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-ADOPTED", SizeBytes: smallDisk}
		space := newSpace(ctx)
		whole, written, volume := writeOnDisk(ctx, space, node, disk)
		local := volumeOf(ctx, volume)
		held := awaitDisk(ctx, node, disk.Serial, "held by LocalVolume "+local.Name)
		adopt := []string{"orphans", "adopt", node + "/" + held.Name, "--fs-type=ext4", "--claim=" + space.Namespace + "/back", "--wait=1m", "--yes"}

		By("refusing what has objects")
		code, said, complained := runPlugin(ctx, adopt...)
		Expect(code).To(Equal(1), said+complained)
		Expect(said).To(ContainSubstring("there is a LocalVolume " + local.Name))

		By("taking its objects away by force")
		leaveDisk(ctx, space, volume, local)
		code, said, complained = runPlugin(ctx, "orphans", "list")
		Expect(code).To(Equal(1), said+complained)
		Expect(said).To(ContainSubstring("blockdevice/" + held.Name))

		By("adopting it")
		code, said, complained = runPlugin(ctx, adopt...)
		Expect(code).To(Equal(0), said+complained)
		adopted := &v1alpha1.LocalVolume{}
		Expect(suite.client.Get(ctx, client.ObjectKey{Name: "adopted-" + string(local.UID)}, adopted)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { deleteByHand(ctx, adopted) }, NodeTimeout(time.Minute))
		Expect(adopted.Status.Device).To(Equal(local.Status.Device))
		Expect(adopted.Status.FilesystemUUID).To(Equal(local.Status.FilesystemUUID))
		awaitDisk(ctx, node, disk.Serial, "held by LocalVolume "+adopted.Name)
		expectHeld(ctx, adopted)
		expectGone(ctx, local)

		By("reading what is on it")
		claimOf(ctx, space, "back", adopted)
		read, _, err := space.RunPod(ctx, whole.with(workload.Pod{Name: "reader", Script: whole.readScript("back")}, "back"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written), "what is in the volume")

		By("deleting it")
		volume, err = space.AwaitBound(ctx, "back")
		Expect(err).NotTo(HaveOccurred())
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "back")).To(Succeed())
		Expect(suite.client.Delete(ctx, volume)).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		deleteByHand(ctx, adopted)
		expectGone(ctx, adopted)
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(2*patience))
})

// writeOnDisk makes a volume of a new disk of a node, and has a pod write to it.
func writeOnDisk(ctx context.Context, space *workload.Space, node string, disk Disk) (whole kind, written string, volume *corev1.PersistentVolume) {
	GinkgoHelper()
	plug(ctx, node, disk)
	awaitDisk(ctx, node, disk.Serial, "blank")
	class := onDisk(ctx, disk.Serial)
	whole = kind{name: "device with ext4", class: func(Classes) string { return class }, size: "200Mi"}
	_, err := space.CreateClaim(ctx, whole.claim("left"))
	Expect(err).NotTo(HaveOccurred())
	written, _, err = space.RunPod(ctx, whole.with(workload.Pod{Name: "writer", Node: node, Script: whole.writeScript("left")}, "left"))
	Expect(err).NotTo(HaveOccurred())
	volume, err = space.AwaitBound(ctx, "left")
	Expect(err).NotTo(HaveOccurred())
	return whole, written, volume
}

// leaveDisk takes the objects of a volume that writeOnDisk has made away by force.
func leaveDisk(ctx context.Context, space *workload.Space, volume *corev1.PersistentVolume, local *v1alpha1.LocalVolume) {
	GinkgoHelper()
	Expect(space.DeletePod(ctx, "writer")).To(Succeed())
	retain := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`))
	Expect(suite.client.Patch(ctx, volume, retain)).To(Succeed())
	Expect(space.DeleteClaim(ctx, "left")).To(Succeed())
	leftOver{local: local}.takeAway(ctx, space, volume)
}

// keepSnapshot deletes a VolumeSnapshot and its content, and not what they lead to.
func keepSnapshot(ctx context.Context, space *workload.Space, name string) {
	GinkgoHelper()
	snapshot := snapshotObject("VolumeSnapshot", space.Namespace, name)
	Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(snapshot), snapshot)).To(Succeed())
	bound, _, err := unstructured.NestedString(snapshot.Object, "status", "boundVolumeSnapshotContentName")
	Expect(err).NotTo(HaveOccurred())
	content := snapshotObject("VolumeSnapshotContent", "", bound)
	Expect(suite.client.Patch(ctx, content, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"deletionPolicy":"Retain"}}`)))).To(Succeed())
	Expect(space.Delete(ctx, snapshot)).To(Succeed())
	Expect(space.Delete(ctx, content)).To(Succeed())
}

// byForce deletes an object that stands for something, and leaves what that is.
func byForce(ctx context.Context, object client.Object) {
	GinkgoHelper()
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null,"annotations":{"berth.dev/allow-delete":"true"}}}`))
	Expect(suite.client.Patch(ctx, object, patch)).To(Succeed())
	Expect(suite.client.Delete(ctx, object)).To(Succeed())
}

// leftOver is a logical volume whose objects are gone, named by the LocalVolume that it had; or
// what is named as if it were one, of another kind.
type leftOver struct {
	local *v1alpha1.LocalVolume
	kind  v1alpha1.LeftOverKind
}

func (l leftOver) request() v1alpha1.PurgeRequest {
	return v1alpha1.PurgeRequest{
		UID: string(l.local.UID), Kind: cmp.Or(l.kind, v1alpha1.LeftOverVolume), Identity: l.local.Status.LVM.VGUUID + "/" + l.local.Status.LVM.LVUUID,
	}
}

// where is how the plugin is told of it.
func (l leftOver) where() string {
	return l.local.Spec.NodeName + "/" + l.local.Spec.Pool + "/" + string(l.local.UID)
}

// takeAway deletes its objects by force.
func (l leftOver) takeAway(ctx context.Context, space *workload.Space, volume *corev1.PersistentVolume) {
	GinkgoHelper()
	none := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	Expect(suite.client.Patch(ctx, volume, none)).To(Succeed())
	Expect(suite.client.Delete(ctx, volume)).To(Succeed())
	byForce(ctx, l.local)
	Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
	expectHeld(ctx, l.local)
}

// adopt makes it a volume again, which one claim can have. The plugin goes on with a LocalVolume as
// it makes one when the agent has told of the left-over, which takes minutes.
func (l leftOver) adopt(ctx context.Context, claim string) *v1alpha1.LocalVolume {
	GinkgoHelper()
	was := l.local.Spec
	volume := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "adopted-" + string(l.local.UID)},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: was.NodeName, Mode: was.Mode, Pool: was.Pool, VolumeMode: was.VolumeMode, FSType: was.FSType, SizeBytes: was.SizeBytes,
			Adopt: &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: string(l.local.UID), Identity: l.request().Identity}},
		},
	}
	Expect(suite.client.Create(ctx, volume)).To(Succeed())
	code, said, complained := runPlugin(ctx, "orphans", "adopt", l.where(), "--claim="+claim, "--wait=1m", "--yes")
	Expect(code).To(Equal(0), said+complained)
	Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(volume), volume)).To(Succeed())
	return volume
}

// claimOf makes the claim of a volume that was made by hand.
func claimOf(ctx context.Context, space *workload.Space, name string, volume *v1alpha1.LocalVolume) {
	GinkgoHelper()
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(volume.Spec.SizeBytes, resource.BinarySI)}
	Expect(suite.client.Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: space.Namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: new(""), VolumeName: volume.Name, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	})).To(Succeed())
}

// pool is the Pool that has it.
func (l leftOver) pool(ctx context.Context) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{}
	return pool, suite.client.Get(ctx, client.ObjectKey{Name: l.local.Spec.Pool + "-" + l.local.Spec.NodeName}, pool)
}

// ask has the pool's purges be these.
func (l leftOver) ask(ctx context.Context, requests ...v1alpha1.PurgeRequest) {
	GinkgoHelper()
	pool, err := l.pool(ctx)
	Expect(err).NotTo(HaveOccurred())
	patch := client.MergeFrom(pool.DeepCopy())
	pool.Spec.Purge = requests
	Expect(suite.client.Patch(ctx, pool, patch)).To(Succeed())
}

// await waits until its purge has come to a state.
func (l leftOver) await(ctx context.Context, want v1alpha1.PurgeState) v1alpha1.PurgeStatus {
	GinkgoHelper()
	var found v1alpha1.PurgeStatus
	Eventually(func(g Gomega, ctx context.Context) {
		pool, err := l.pool(ctx)
		g.Expect(err).NotTo(HaveOccurred())
		at := slices.IndexFunc(pool.Status.Purges, func(s v1alpha1.PurgeStatus) bool { return s.UID == string(l.local.UID) })
		g.Expect(at).To(BeNumerically(">=", 0), "the purge of %s", l.local.UID)
		found = pool.Status.Purges[at]
		g.Expect(found.State).To(Equal(want), found.Message)
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
	return found
}

// confirm ends its quarantine, as a user does.
func (l leftOver) confirm(ctx context.Context, token string) {
	GinkgoHelper()
	Expect(token).NotTo(BeEmpty())
	code, said, complained := runPlugin(ctx, "orphans", "purge", l.where(), "--confirm="+token, "--yes")
	Expect(code).To(Equal(0), said+complained)
	l.await(ctx, v1alpha1.PurgePurged)
}
