// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Disks of the test's own: the pool of the other specs stays as it is.
var _ = Describe("A redundant pool", Label("pools", "raid"), func() {
	It("goes on without a disk, takes it back, and rebuilds what was on one that is lost for good", Serial, func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		first, second, spare := raidDisk("A"), raidDisk("B"), raidDisk("C")
		for _, disk := range []Disk{first, second} {
			plug(ctx, node, disk)
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		set := raidSet("e2e-mirror", v1alpha1.LayoutMirror, node)
		pool := newPool(ctx, set, node)
		Expect(pool.Status.Type).To(Equal(string(v1alpha1.LayoutMirror)))
		whole := pool.Status.Free.DeepCopy()
		Expect(whole.Value()).To(And(BeNumerically(">", 400<<20), BeNumerically("<", 512<<20)), "what one disk holds")

		By("making a volume, with a pod that goes on writing")
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		mirrored := kind{name: "lvm in a mirror", class: func(Classes) string { return class }, size: "96Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, mirrored.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, mirrored.with(workload.Pod{Name: "writer", Node: node, Script: mirrored.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		Expect(local.Status.LVM).NotTo(BeNil())
		Expect(strings.TrimSpace(execOn(ctx, node, fmt.Sprintf("lvs --noheadings -o lv_layout %s/%s", local.Status.LVM.VGName, local.Status.LVM.LVName)))).To(Equal("raid,raid1"))
		_, err = space.CreatePod(ctx, mirrored.with(workload.Pod{Name: "busy", Node: node, Script: busyScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "busy", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		grow(ctx, local, 128<<20)

		By("unplugging a disk, and plugging it in again")
		Expect(suite.hosts.UnplugDisk(ctx, node, second.Serial)).To(Succeed())
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "1 of 2 disks")
		Expect(pool.Status.State).To(Equal(v1alpha1.PoolDegraded))
		Expect(pool.Status.Raid.DegradedVolumes).To(BeEquivalentTo(1))
		Expect(suite.hosts.PlugDisk(ctx, node, second)).To(Succeed())
		awaitRedundant(ctx, pool)
		Expect(pool.Status.DiskCount).To(BeEquivalentTo(2))

		By("losing it for good")
		setRebuildAfter(ctx, set, 2*time.Second)
		Expect(suite.hosts.UnplugDisk(ctx, node, second.Serial)).To(Succeed())
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "add a disk that matches")
		plug(ctx, node, spare)
		awaitRedundant(ctx, pool)
		Expect(pool.Status.DiskCount).To(BeEquivalentTo(2))
		Expect(pool.Status.MissingDiskCount).To(BeZero())
		Expect(legDisks(ctx, node, local.Status.LVM.VGName, local.Status.LVM.LVName)).To(ConsistOf(
			awaitDisk(ctx, node, first.Serial, "").Status.Path, awaitDisk(ctx, node, spare.Serial, "").Status.Path))

		By("having the lost one back, which is nobody's now, and is left as it is")
		Expect(suite.hosts.PlugDisk(ctx, node, second)).To(Succeed())
		lost := awaitDisk(ctx, node, second.Serial, "as it was (wipe: none)")
		Eventually(func(g Gomega, ctx context.Context) { // it has said so before it was plugged in
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(lost), lost)).To(Succeed())
			g.Expect(lost.Status.State).To(Equal(v1alpha1.DeviceActive))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(250 * time.Millisecond).Should(Succeed())
		Consistently(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.State).To(Equal(v1alpha1.PoolHealthy))
			g.Expect(pool.Status.DiskCount).To(BeEquivalentTo(2))
		}).WithContext(ctx).WithTimeout(5 * time.Second).WithPolling(time.Second).Should(Succeed())

		By("reading on the disk that came last alone what was written, after a loss of power")
		busy := &corev1.Pod{}
		Expect(suite.client.Get(ctx, client.ObjectKey{Namespace: space.Namespace, Name: "busy"}, busy)).To(Succeed())
		Expect(busy.Status.Phase).To(Equal(corev1.PodRunning), "it has not missed a write")
		Expect(space.DeletePod(ctx, "busy")).To(Succeed())
		Expect(suite.hosts.UnplugDisk(ctx, node, first.Serial)).To(Succeed())
		Expect(suite.hosts.PowerOff(ctx, node)).To(Succeed())
		Expect(suite.hosts.PowerOn(ctx, node, true)).To(Succeed())
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "1 of 2 disks")
		read, _, err := space.RunPod(ctx, mirrored.with(workload.Pod{Name: "reader", Node: node, Script: mirrored.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))

		By("giving everything back")
		Expect(suite.hosts.PlugDisk(ctx, node, first)).To(Succeed())
		awaitRedundant(ctx, pool)
		for _, pod := range []string{"writer", "reader"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.Free.Cmp(whole)).To(Equal(0))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
		removePool(ctx, set, pool)
		for _, disk := range []Disk{first, spare} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		path := awaitDisk(ctx, node, second.Serial, "").Status.Path
		execOn(ctx, node, "blkdiscard --zeroout --force "+path)
		awaitDisk(ctx, node, second.Serial, "blank")
	}, SpecTimeout(5*patience))

	It("is not what a disk holds that was away while it was written to", Serial, Label("long"), func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		old, young := raidDisk("J"), raidDisk("K")
		for _, disk := range []Disk{old, young} {
			plug(ctx, node, disk)
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		set := raidSet("e2e-old", v1alpha1.LayoutMirror, node)
		set.Spec.RebuildAfter = &metav1.Duration{Duration: 2 * time.Second}
		pool := newPool(ctx, set, node)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		mirrored := kind{name: "lvm in a mirror", class: func(Classes) string { return class }, size: "96Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, mirrored.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		before, _, err := space.RunPod(ctx, mirrored.with(workload.Pod{Name: "first", Node: node, Script: mirrored.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())

		By("writing while one disk is away")
		Expect(suite.hosts.UnplugDisk(ctx, node, old.Serial)).To(Succeed())
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "1 of 2 disks")
		written, _, err := space.RunPod(ctx, mirrored.with(workload.Pod{Name: "second", Node: node, Script: mirrored.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(written).NotTo(Equal(before))

		By("starting the node with that disk alone")
		Expect(suite.hosts.PowerOff(ctx, node)).To(Succeed())
		Expect(suite.hosts.UnplugDisk(ctx, node, young.Serial)).To(Succeed())
		Expect(suite.hosts.PlugDisk(ctx, node, old)).To(Succeed())
		Expect(suite.hosts.PowerOn(ctx, node, true)).To(Succeed())
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
		_, err = space.CreatePod(ctx, mirrored.with(workload.Pod{Name: "reader", Node: node, Script: mirrored.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "were away while it was written to")
		Expect(pool.Status.State).To(Equal(v1alpha1.PoolFailed))
		waits := &corev1.Pod{}
		Consistently(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKey{Namespace: space.Namespace, Name: "reader"}, waits)).To(Succeed())
			g.Expect(waits.Status.Phase).To(Equal(corev1.PodPending))
		}).WithContext(ctx).WithTimeout(10 * time.Second).WithPolling(time.Second).Should(Succeed())

		By("giving it the other one back")
		Expect(suite.hosts.PlugDisk(ctx, node, young)).To(Succeed())
		reader, err := space.AwaitPod(ctx, "reader", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(reader)).To(Equal(written))
		awaitRedundant(ctx, pool)
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		removePool(ctx, set, pool)
		for _, disk := range []Disk{old, young} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(5*patience))

	It("keeps thin volumes and what was made of them, whatever two of six disks are lost", Label("long"), func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[len(suite.nodes)-1]
		var disks []Disk
		for _, letter := range []string{"D", "E", "F", "G", "H", "I"} {
			disk := raidDisk(letter)
			disk.SizeBytes /= 2
			disks = append(disks, disk)
			plug(ctx, node, disk)
		}
		for _, disk := range disks {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		set := raidSet("e2e-raid6", v1alpha1.LayoutRAID6, node)
		set.Spec.Thin = &v1alpha1.ThinPool{OverprovisionRatio: "3"}
		pool := newPool(ctx, set, node)
		Expect(pool.Status.Type).To(Equal("thin-raid6"))
		// Four of six disks of 192 MiB hold data, beside the metadata.
		Expect(pool.Status.Thin.Data.Value()).To(And(BeNumerically(">", 500<<20), BeNumerically("<=", 4*192<<20)))
		setRebuildAfter(ctx, set, 2*time.Second)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		parity := kind{name: "thin in a raid6", class: func(Classes) string { return class }, size: "300Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, parity.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, parity.with(workload.Pod{Name: "writer", Node: node, Script: parity.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		vgName := local.Status.LVM.VGName
		Expect(legDisks(ctx, node, vgName, "thin_tdata")).To(HaveLen(len(disks)))
		Expect(legDisks(ctx, node, vgName, "thin_tmeta")).To(HaveLen(3))
		takeSnapshot(ctx, space, "whole", "data")
		for _, disk := range disks[1:3] {
			Expect(suite.hosts.UnplugDisk(ctx, node, disk.Serial)).To(Succeed())
		}
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonVGPartial, "2 of 6 disks")
		// The kernel takes a leg for failed when it reads or writes it.
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.Raid.DegradedVolumes).NotTo(BeZero())
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
		read, _, err := space.RunPod(ctx, parity.with(workload.Pod{Name: "reader", Node: node, Script: parity.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))
		for _, disk := range disks[1:3] {
			Expect(suite.hosts.PlugDisk(ctx, node, disk)).To(Succeed())
		}
		awaitRedundant(ctx, pool)
		group := "snapshot.storage.k8s.io"
		_, err = space.CreateClaim(ctx, workload.Claim{
			Name: "restored", Class: class, Size: parity.size, Source: &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "whole"},
		})
		Expect(err).NotTo(HaveOccurred())
		read, _, err = space.RunPod(ctx, parity.with(workload.Pod{Name: "again", Node: node, Script: parity.readScript("restored")}, "restored"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))
		restored, err := space.AwaitBound(ctx, "restored")
		Expect(err).NotTo(HaveOccurred())
		Expect(suite.client.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, "whole"))).To(Succeed())
		for _, pod := range []string{"writer", "reader", "again"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		for claim, volume := range map[string]string{"data": volume.Name, "restored": restored.Name} {
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume)).To(Succeed())
		}
		removePool(ctx, set, pool)
		for _, disk := range disks {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(4*patience))
})

func raidDisk(letter string) Disk {
	return Disk{Serial: "E2E-RAID-" + letter, SizeBytes: 512 << 20}
}

func raidSet(name string, layout v1alpha1.PoolLayout, node string) *v1alpha1.PoolSet {
	return &v1alpha1.PoolSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, Layout: layout,
			NodeSelector:   map[string]string{corev1.LabelHostname: node},
			DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-RAID-*"}},
		},
	}
}

func setRebuildAfter(ctx context.Context, set *v1alpha1.PoolSet, after time.Duration) {
	GinkgoHelper()
	Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(set), set)).To(Succeed())
	set.Spec.RebuildAfter = &metav1.Duration{Duration: after}
	Expect(suite.client.Update(ctx, set)).To(Succeed())
}

// awaitRedundant waits until no volume of a pool lacks anything.
func awaitRedundant(ctx context.Context, pool *v1alpha1.Pool) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		g.Expect(pool.Status.State).To(Equal(v1alpha1.PoolHealthy), "%+v", pool.Status)
		g.Expect(pool.Status.Raid).NotTo(BeNil())
		g.Expect(pool.Status.Raid.DegradedVolumes).To(BeZero())
		g.Expect(pool.Status.MissingDiskCount).To(BeZero())
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}

// legDisks are the disks that the legs of a logical volume lie on.
func legDisks(ctx context.Context, node, vgName, lvName string) []string {
	GinkgoHelper()
	out := execOn(ctx, node, fmt.Sprintf("lvs -a --noheadings -o lv_name,devices %s | grep -F '[%s_rimage'", vgName, lvName))
	disks := map[string]bool{}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 1 {
			disk, _, _ := strings.Cut(fields[1], "(")
			disks[disk] = true
		}
	}
	var paths []string
	for path := range disks {
		paths = append(paths, path)
	}
	return paths
}

// busyScript writes and reads back until it fails, and then ends.
func busyScript(claim string) string {
	return fmt.Sprintf(`set -e; n=0; while :; do n=$((n+1)); echo $n > %[1]s/%[2]s/busy; sync; [ "$(cat %[1]s/%[2]s/busy)" = $n ]; sleep 0.2; done`,
		workload.MountDirectory, claim)
}
