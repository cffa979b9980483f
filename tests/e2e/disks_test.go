// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// smallDisk is smaller than what any other spec claims as a whole disk, so that none
// of them gets it.
const smallDisk = int64(256) << 20

// Disks come, go, return and lie, one spec of these after the other.
var _ = Describe("A disk", Label("disks"), Ordered, ContinueOnFailure, func() {
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

	It("that cannot be read is not handed out, and is usable when it can", func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-UNREADABLE", SizeBytes: smallDisk, FailReads: true}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "input/output error")
		awaitEvent(ctx, device, v1alpha1.ReasonUnreadable)
		Expect(suite.hosts.UnplugDisk(ctx, node, disk.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone")
		disk.FailReads = false
		Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(patience))
})

// Serial: agents are started anew, and udev and the devices are kept busy, for which everything
// else on the node would wait.
var _ = Describe("A disk", Label("disks"), Serial, func() {
	BeforeEach(func() { needs(CanPlugDisks) })

	It("of which the kernel tells all the time costs few writes", Label("long"), func(ctx SpecContext) {
		needs(CanExec)
		node, disk := suite.nodes[0], Disk{Serial: "E2E-STORM", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		agent, err := agentPod(ctx, node)
		Expect(err).NotTo(HaveOccurred())
		watcher, err := suite.client.Watch(ctx, &v1alpha1.BlockDeviceList{}, client.MatchingFields{"metadata.name": device.Name})
		Expect(err).NotTo(HaveOccurred())
		defer watcher.Stop()
		const events = 500
		began := time.Now()
		// udev alone takes a minute for them on an emulated node (docs/benchmarks.md), and
		// several on a busy machine. The wait is for udev; what is checked of Berth are its
		// writes in that time.
		execOn(ctx, node, fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo change >/sys/class/block/%s/uevent; i=$((i+1)); done; udevadm settle -t 400",
			events, strings.TrimPrefix(device.Status.Path, "/dev/")))
		seconds := time.Since(began).Seconds()
		after := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(after.Status.State).To(Equal(v1alpha1.DeviceActive))
		writes := 0
		for event := range told(ctx, watcher) {
			if event.Type == watch.Modified {
				writes++
			}
		}
		Expect(writes).To(BeNumerically("<=", seconds+1), "writes during %d events in %.0f s", events, seconds)
		now, err := agentPod(ctx, node)
		Expect(err).NotTo(HaveOccurred())
		Expect(agentContainer(now).ContainerID).To(Equal(agentContainer(agent).ContainerID), "the agent was not started anew")
		AddReportEntry("storm", fmt.Sprintf("%d events in %.0f s: %d writes", events, seconds, writes), ReportEntryVisibilityAlways)
	}, SpecTimeout(2*patience))

	It("that cannot be written serves no claim, and nobody gets it before it is clean", Label("long"), func(ctx SpecContext) {
		node, disk := suite.nodes[0], Disk{Serial: "E2E-UNWRITABLE", SizeBytes: smallDisk, FailWrites: true}
		class := onDisk(ctx, disk.Serial)
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		space := newSpace(ctx)
		claim, err := space.CreateClaim(ctx, workload.Claim{Name: "data", Class: class, Size: "200Mi"})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreatePod(ctx, workload.Pod{Name: "writer", Node: node, Claims: []string{"data"}, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		Eventually(func(g Gomega, ctx context.Context) {
			told, err := space.Events(ctx, claim.UID)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(told).To(ContainElement(And(ContainSubstring("ProvisioningFailed"), ContainSubstring("mkfs"))))
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
		By("giving the claim up")
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		failed := awaitDisk(ctx, node, disk.Serial, "input/output error")
		Expect(failed.Status.ClaimState).To(Equal(v1alpha1.ClaimStateReleased))
		awaitEvent(ctx, failed, v1alpha1.ReasonWipeFailed)
		By("mending it")
		Expect(suite.hosts.UnplugDisk(ctx, node, disk.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone")
		disk.FailWrites = false
		Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		clean := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(clean.Status.ClaimState).To(Equal(v1alpha1.ClaimStateUnclaimed))
	}, SpecTimeout(3*patience))

	It("with a volume is missed, not replaced, and the volume is whole when it is back", Label("long"), func(ctx SpecContext) {
		if len(suite.nodes) < 2 {
			Skip("needs two nodes")
		}
		node, other := suite.nodes[0], suite.nodes[1]
		disk := Disk{Serial: "E2E-TRAVELLER", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		space := newSpace(ctx)
		class := onDisk(ctx, disk.Serial)
		whole := kind{name: "device with ext4", class: func(Classes) string { return class }, size: "200Mi"}
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

	It("that has taken the place of a released one is not wiped", func(ctx SpecContext) {
		needs(CanExec)
		node := suite.nodes[0]
		disk := Disk{Serial: "E2E-SLOT", SizeBytes: smallDisk}
		impostor := Disk{Serial: "E2E-SLOT-OTHER", Reports: disk.Serial, SizeBytes: smallDisk}
		plug(ctx, node, impostor)
		device := awaitDisk(ctx, node, disk.Serial, "blank")
		const theirs = "5d6c2a51-7a3e-4c55-9d0e-6f1b2c3d4e5f"
		execOn(ctx, node, fmt.Sprintf("mkfs.ext4 -q -U %s %s && sync", theirs, device.Status.Path))
		awaitDisk(ctx, node, disk.Serial, "holds ext4")
		Expect(suite.hosts.UnplugDisk(ctx, node, impostor.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone; it was")

		By("making a volume of the disk, and deleting it while the disk is away")
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		space := newSpace(ctx)
		class := onDisk(ctx, disk.Serial)
		whole := kind{name: "device with ext4", class: func(Classes) string { return class }, size: "200Mi"}
		_, err := space.CreateClaim(ctx, whole.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, whole.with(workload.Pod{Name: "writer", Node: node, Script: whole.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		Expect(suite.hosts.UnplugDisk(ctx, node, disk.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone; it was")
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())

		By("putting the other one into its slot")
		Expect(suite.hosts.PlugDisk(ctx, node, impostor)).To(Succeed())
		kept := awaitDisk(ctx, node, disk.Serial, "on it is ext4 with UUID "+theirs)
		Expect(kept.Status.ClaimState).To(Equal(v1alpha1.ClaimStateReleased))
		awaitEvent(ctx, kept, v1alpha1.ReasonWipeFailed)
		execOn(ctx, node, "e2fsck -fn "+kept.Status.Path)

		By("bringing back the disk that was released")
		Expect(suite.hosts.UnplugDisk(ctx, node, impostor.Serial)).To(Succeed())
		awaitDisk(ctx, node, disk.Serial, "gone")
		Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		clean := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(clean.Status.ClaimState).To(Equal(v1alpha1.ClaimStateUnclaimed))
	}, SpecTimeout(3*patience))

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

	// Long: a boot and two rollouts of all agents around half a minute of wiping.
	It("that loses power while it is wiped is wiped in the end", Label("long"), func(ctx SpecContext) {
		needs(CanPowerOff)
		class := suite.description.Classes.Device
		if class == "" {
			Skip("needs a class of whole disks")
		}
		node, disk := suite.nodes[len(suite.nodes)-1], Disk{Serial: "E2E-WIPED", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		const slowly = "--wipe-rate=8Mi" // half a minute for the whole disk
		setAgentArgument(ctx, slowly, true)
		DeferCleanup(func(ctx SpecContext) { setAgentArgument(ctx, slowly, false) }, NodeTimeout(patience))
		space := newSpace(ctx)
		raw := kind{name: "device as a block device", class: func(c Classes) string { return c.Device }, size: "200Mi", block: true}
		_, err := space.CreateClaim(ctx, raw.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, raw.with(workload.Pod{Name: "writer", Node: node, Script: fmt.Sprintf(
			`set -e; yes %s | dd of=%s bs=65536 count=4096 iflag=fullblock conv=fsync 2>/dev/null`, secret, raw.place("data"))}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		wiping := awaitDisk(ctx, node, disk.Serial, "% done")
		Expect(wiping.Status.ClaimState).To(Equal(v1alpha1.ClaimStateReleased))
		Expect(wiping.Status.Wipe.DoneBytes).To(BeNumerically(">", 0))
		Expect(suite.hosts.PowerOff(ctx, node)).To(Succeed())
		Expect(suite.hosts.PowerOn(ctx, node, true)).To(Succeed())
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
		Eventually(func(ctx context.Context) string {
			_, message := usability(awaitDisk(ctx, node, disk.Serial, ""))
			return message
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Equal("blank"))
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		path := awaitDisk(ctx, node, disk.Serial, "blank").Status.Path
		Expect(strings.TrimSpace(execOn(ctx, node, fmt.Sprintf("grep -c %s %s || true", secret, path)))).To(Equal("0"), "lines of the deleted volume")
	}, SpecTimeout(4*patience))
})

// onDisk is a class of whole disks that takes only the one with that serial.
func onDisk(ctx context.Context, serial string) string {
	GinkgoHelper()
	return newClass(ctx, map[string]string{"mode": "device", "deviceSelector": fmt.Sprintf(`{"serials":[%q]}`, serial)})
}

// plug adds a disk and takes it away in the end: when nothing holds it any more and it is
// wiped, for it would stay Released without an end.
func plug(ctx context.Context, node string, disk Disk) {
	GinkgoHelper()
	Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		for _, at := range suite.nodes { // it may have moved
			_ = suite.hosts.UnplugDisk(ctx, at, disk.Serial)
		}
		// Else the spec that comes next takes it for a disk that it can use.
		Eventually(func(g Gomega, ctx context.Context) {
			devices := &v1alpha1.BlockDeviceList{}
			g.Expect(suite.client.List(ctx, devices)).To(Succeed())
			for _, device := range devices.Items {
				if device.Status.Serial == disk.Serial {
					g.Expect(device.Status.State).NotTo(Equal(v1alpha1.DeviceActive), "%s, unplugged, on %s", disk.Serial, device.Spec.NodeName)
				}
			}
		}).WithContext(ctx).WithTimeout(90 * time.Second).WithPolling(250 * time.Millisecond).Should(Succeed())
	}, NodeTimeout(2*time.Minute))
	// The last to be registered is the first to run.
	DeferCleanup(func(ctx SpecContext) {
		Eventually(func(g Gomega, ctx context.Context) {
			devices := &v1alpha1.BlockDeviceList{}
			g.Expect(suite.client.List(ctx, devices)).To(Succeed())
			for _, device := range devices.Items {
				if device.Status.Serial == disk.Serial && device.Status.State == v1alpha1.DeviceActive {
					g.Expect(device.Status.ClaimState).NotTo(Equal(v1alpha1.ClaimStateReleased), "%s on %s is still being wiped", disk.Serial, device.Spec.NodeName)
				}
			}
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	}, NodeTimeout(2*time.Minute))
}

// setAgentArgument adds an argument to the agents, or takes it away, and waits until
// all of them run so.
func setAgentArgument(ctx context.Context, argument string, wanted bool) {
	GinkgoHelper()
	agents := &appsv1.DaemonSet{}
	key := client.ObjectKey{Namespace: suite.description.Namespace, Name: "berth-node-agent"}
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, key, agents)).To(Succeed())
		container := &agents.Spec.Template.Spec.Containers[0]
		container.Args = slices.DeleteFunc(container.Args, func(a string) bool { return a == argument })
		if wanted {
			container.Args = append(container.Args, argument)
		}
		g.Expect(suite.client.Update(ctx, agents)).To(Succeed())
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, key, agents)).To(Succeed())
		g.Expect(agents.Status.ObservedGeneration).To(Equal(agents.Generation))
		g.Expect(agents.Status.UpdatedNumberScheduled).To(Equal(agents.Status.DesiredNumberScheduled))
		g.Expect(agents.Status.NumberReady).To(Equal(agents.Status.DesiredNumberScheduled))
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
	for _, node := range suite.nodes {
		awaitAgent(ctx, node)
	}
}

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
