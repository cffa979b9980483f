// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// smallDisk is smaller than what any other spec claims as a whole disk, so that none
// of them gets it.
const smallDisk = int64(256) << 20

// Disks come, go, return and lie. Serial: a spec's disks are nobody else's.
var _ = Describe("A disk", Label("disks"), Serial, func() {
	// plug adds a disk and takes it away in the end.
	plug := func(ctx context.Context, node string, disk Disk) {
		GinkgoHelper()
		Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			for _, at := range suite.nodes { // it may have moved
				_ = suite.hosts.UnplugDisk(ctx, at, disk.Serial)
			}
		}, NodeTimeout(2*time.Minute))
	}
	BeforeEach(func() { needs(CanPlugDisks) })

	It("is usable seconds after it was plugged in, and gone seconds after it was pulled out", func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-HOTPLUG", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(device.Status.SizeBytes).To(Equal(disk.SizeBytes))
		Expect(suite.hosts.UnplugDisk(ctx, node, disk.Serial)).To(Succeed())
		gone := awaitDisk(ctx, node, disk.Serial, "gone; it was "+device.Status.Path)
		Expect(gone.Status.State).To(Equal(v1alpha1.DeviceInactive))

		By("putting it back, read-only")
		disk.ReadOnly = true
		Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		back := awaitDisk(ctx, node, disk.Serial, "read-only")
		Expect(back.Name).To(Equal(device.Name))
		Expect(back.Status.State).To(Equal(v1alpha1.DeviceActive))
	}, SpecTimeout(patience))

	It("that says it is another disk makes both unusable", func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-ORIGINAL", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		clone := Disk{Serial: "E2E-CLONE", Reports: disk.Serial, SizeBytes: smallDisk}
		plug(ctx, node, clone)
		both := awaitDisk(ctx, node, disk.Serial, "both say they are serial")
		Expect(both.Name).To(Equal(device.Name))
		Expect(strings.Split(both.Status.Path, ",")).To(HaveLen(2))
		awaitEvent(ctx, both, v1alpha1.ReasonConflicted)
		Expect(suite.hosts.UnplugDisk(ctx, node, clone.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(patience))

	It("that says it is failing is not handed out", func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-FAILING", SizeBytes: smallDisk, NVMe: true}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		awaitHealth(ctx, device, metav1.ConditionTrue, v1alpha1.ReasonGood)
		const unreliable = 1 << 2
		Expect(suite.hosts.WarnDisk(ctx, node, disk.Serial, unreliable)).To(Succeed())
		// Each disk is looked at when its agent starts.
		Expect(restartAgent(ctx, node)).To(Succeed())
		awaitHealth(ctx, device, metav1.ConditionFalse, v1alpha1.ReasonSelfFailing)
		awaitDisk(ctx, node, disk.Serial, "failing: it is unreliable after media or internal errors")
		awaitEvent(ctx, device, v1alpha1.ReasonSelfFailing)
		Expect(suite.hosts.WarnDisk(ctx, node, disk.Serial, 0)).To(Succeed())
		Expect(restartAgent(ctx, node)).To(Succeed())
		awaitHealth(ctx, device, metav1.ConditionTrue, v1alpha1.ReasonGood)
		awaitDisk(ctx, node, disk.Serial, "blank")
		awaitAgent(ctx, node)
	}, SpecTimeout(2*patience))

	It("with a volume is missed, not replaced, and the volume is whole when it is back", func(ctx SpecContext) {
		class := suite.description.Classes.Device
		if class == "" || len(suite.nodes) < 2 {
			Skip("needs two nodes and a class of whole disks")
		}
		node, other := suite.nodes[0], suite.nodes[1]
		disk := Disk{Serial: "E2E-TRAVELLER", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		space := newSpace(ctx)
		whole := kind{name: "device with ext4", class: func(c Classes) string { return c.Device }, size: "200Mi"}
		_, err := space.CreateClaim(ctx, whole.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, whole.with(workload.Pod{Name: "writer", Node: node, Script: whole.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		awaitDisk(ctx, node, disk.Serial, "held by LocalVolume "+local.Name)
		_, err = space.CreatePod(ctx, whole.with(workload.Pod{Name: "holder", Script: "sleep 3600"}, "data"))
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "holder", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())

		By("moving it to another node, under the running pod")
		Expect(suite.hosts.MoveDisk(ctx, node, disk.Serial, other)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone; it was")
		awaitReady(ctx, local, metav1.ConditionFalse, v1alpha1.ReasonMissing)
		seen := awaitDisk(ctx, other, disk.Serial, "last seen on node "+node+", where LocalVolume "+local.Name+" holds it")
		Expect(seen.Name).NotTo(Equal(device.Name))
		Expect(seen.Spec.ClaimRef).To(BeNil())

		By("putting another of the same size into its place")
		plug(ctx, node, Disk{Serial: "E2E-SUBSTITUTE", SizeBytes: smallDisk})
		awaitDisk(ctx, node, "E2E-SUBSTITUTE", "blank")
		Expect(space.DeletePod(ctx, "holder")).To(Succeed())
		reader, err := space.CreatePod(ctx, whole.with(workload.Pod{Name: "reader", Script: whole.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Eventually(func(g Gomega, ctx context.Context) {
			told, err := space.Events(ctx, reader.UID)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(told).To(ContainElement(And(ContainSubstring("FailedMount"), ContainSubstring(local.Name))))
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
		awaitDisk(ctx, node, "E2E-SUBSTITUTE", "blank")

		By("bringing it back")
		Expect(suite.hosts.MoveDisk(ctx, other, disk.Serial, node)).To(Succeed())
		awaitReady(ctx, local, metav1.ConditionTrue, v1alpha1.ReasonCarved)
		ended, err := space.AwaitPod(ctx, "reader", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(Equal(written))
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(3*patience))
})

// awaitDisk waits until a node's BlockDevice of a serial says some words of why it can
// be used or not.
func awaitDisk(ctx context.Context, node, serial, words string) *v1alpha1.BlockDevice {
	GinkgoHelper()
	var found *v1alpha1.BlockDevice
	Eventually(func(g Gomega, ctx context.Context) {
		devices := &v1alpha1.BlockDeviceList{}
		g.Expect(suite.client.List(ctx, devices)).To(Succeed())
		found = nil
		for i := range devices.Items {
			if d := &devices.Items[i]; d.Spec.NodeName == node && d.Status.Serial == serial {
				found = d
			}
		}
		g.Expect(found).NotTo(BeNil(), "the disk %s on %s", serial, node)
		_, message := usability(found)
		g.Expect(message).To(ContainSubstring(words))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(250 * time.Millisecond).Should(Succeed())
	return found
}

func awaitHealth(ctx context.Context, device *v1alpha1.BlockDevice, status metav1.ConditionStatus, reason string) {
	GinkgoHelper()
	awaitCondition(ctx, device, func() []metav1.Condition { return device.Status.Conditions }, v1alpha1.BlockDeviceHealthy, status, reason)
}

func awaitReady(ctx context.Context, local *v1alpha1.LocalVolume, status metav1.ConditionStatus, reason string) {
	GinkgoHelper()
	awaitCondition(ctx, local, func() []metav1.Condition { return local.Status.Conditions }, v1alpha1.LocalVolumeReady, status, reason)
}

func awaitCondition(ctx context.Context, object client.Object, conditions func() []metav1.Condition, kind string, status metav1.ConditionStatus, reason string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
		c := meta.FindStatusCondition(conditions(), kind)
		g.Expect(c).NotTo(BeNil(), "condition %s of %s", kind, object.GetName())
		g.Expect(c.Status).To(Equal(status), c.Message)
		g.Expect(c.Reason).To(Equal(reason), c.Message)
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(500 * time.Millisecond).Should(Succeed())
}

// awaitEvent waits for a warning about a disk.
func awaitEvent(ctx context.Context, device *v1alpha1.BlockDevice, reason string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		events := &eventsv1.EventList{}
		g.Expect(suite.client.List(ctx, events)).To(Succeed())
		reasons := []string{}
		for _, event := range events.Items {
			if event.Regarding.Name == device.Name && event.Type == corev1.EventTypeWarning {
				reasons = append(reasons, event.Reason)
			}
		}
		g.Expect(reasons).To(ContainElement(reason))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
}
