// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Beside other specs: its disk is smaller than what their claims of mode device ask for.
var _ = Describe("A volume group that somebody has made", Label("pools", "adopt"), func() {
	It("serves volumes, and is left as it was", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		disk := Disk{Serial: "E2E-ADOPT-VG", SizeBytes: 512 << 20}
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")

		// As its owner would, who does not know of Berth.
		const group = "e2e-customer"
		lvm := func(format string, args ...any) string {
			return strings.TrimSpace(execOn(ctx, node, fmt.Sprintf(format, args...)))
		}
		DeferCleanup(func(ctx SpecContext) {
			execOn(ctx, node, fmt.Sprintf("lvremove --quiet --yes %[1]s && vgremove --quiet %[1]s && pvremove --quiet /dev/disk/by-id/virtio-%[2]s", group, disk.Serial))
		}, NodeTimeout(patience))
		lvm("vgcreate --quiet %s /dev/disk/by-id/virtio-%s", group, disk.Serial)
		lvm("lvcreate --quiet --yes --wipesignatures y --size 64m --name books %s", group)
		lvm("head -c 67108864 /dev/urandom >/dev/%s/books", group)
		books := func() string { return lvm("sync; sha256sum </dev/%s/books", group) }
		// All but the generation, which counts what Berth does to its own volumes.
		state := func() string {
			return lvm("vgs --noheadings -o vg_name,vg_uuid,vg_tags,vg_free_count,pv_count,lv_count %[1]s; pvs --noheadings -o pv_uuid,pv_tags,pv_used --select vg_name=%[1]s; lvs --noheadings -o lv_name,lv_uuid,lv_tags,lv_attr %[1]s", group)
		}
		// serves adopts, makes a volume, and lets go; what was there is as before.
		serves := func(set *v1alpha1.PoolSet, kindOf string) *v1alpha1.Pool {
			before, digest := state(), books()
			By("adopting " + set.Name)
			set.Spec.Kind, set.Spec.NodeSelector = v1alpha1.PoolLVM, map[string]string{corev1.LabelHostname: node}
			set.Spec.Adopt.VGName, set.Spec.Adopt.VGUUID = group, lvm("vgs --noheadings -o vg_uuid %s", group)
			pool := newPool(ctx, set, node)
			Expect(pool.Status.Adopted).To(BeTrue())
			Expect(pool.Status.VGName).To(Equal(group))
			Expect(pool.Status.Type).To(Equal(kindOf))
			Expect(pool.Status.BlockDevices).To(BeEmpty(), "no disk of it is Berth's")
			Expect(state()).To(Equal(before))
			seen := pool.DeepCopy()

			By("making a volume in " + set.Name)
			class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
			guest := kind{name: "lvm in " + set.Name, class: func(Classes) string { return class }, size: "128Mi"}
			space := newSpace(ctx)
			_, err := space.CreateClaim(ctx, guest.claim("data"))
			Expect(err).NotTo(HaveOccurred())
			written, _, err := space.RunPod(ctx, guest.with(workload.Pod{Name: "writer", Node: node, Script: guest.writeScript("data")}, "data"))
			Expect(err).NotTo(HaveOccurred())
			volume, err := space.AwaitBound(ctx, "data")
			Expect(err).NotTo(HaveOccurred())
			local := volumeOf(ctx, volume)
			Expect(local.Status.LVM).NotTo(BeNil())
			Expect(local.Status.LVM.VGName).To(Equal(group))
			Expect(lvm("lvs --noheadings -o pool_lv %s/%s", group, local.Status.LVM.LVName)).To(Equal(set.Spec.Adopt.ThinPoolName))
			grow(ctx, local, 192<<20)
			read, _, err := space.RunPod(ctx, guest.with(workload.Pod{Name: "reader", Node: node, Script: guest.readScript("data")}, "data"))
			Expect(err).NotTo(HaveOccurred())
			Expect(read).To(Equal(written))

			By("letting " + set.Name + " go")
			for _, pod := range []string{"writer", "reader"} {
				Expect(space.DeletePod(ctx, pod)).To(Succeed())
			}
			Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
			removePool(ctx, set, pool)
			Expect(state()).To(Equal(before))
			Expect(books()).To(Equal(digest))
			return seen
		}

		serves(&v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "e2e-adopted"}, Spec: v1alpha1.PoolSetSpec{Adopt: &v1alpha1.AdoptedGroup{}}}, "linear")

		lvm("lvcreate --quiet --yes --type thin-pool --size 256m --name tank %s", group)
		lvm("lvcreate --quiet --yes --virtualsize 32m --thinpool tank --name letters %s", group)
		uuid := lvm("lvs --noheadings -o lv_uuid %s/tank", group)
		pool := serves(&v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "e2e-adopted-thin"}, Spec: v1alpha1.PoolSetSpec{
			Adopt: &v1alpha1.AdoptedGroup{ThinPoolName: "tank", ThinPoolUUID: uuid}, Thin: &v1alpha1.ThinPool{},
		}}, "thin")
		Expect(pool.Status.ThinPoolUUID).To(Equal(uuid))
		Expect(pool.Status.Capacity.Value()).To(BeEquivalentTo(256<<20), "what the volume group could give is not counted")
		Expect(pool.Status.Free.Value()).To(BeEquivalentTo(224<<20), "the volumes of others are")
	}, SpecTimeout(3*patience))
})
