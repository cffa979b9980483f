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
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// refusal is a wish that cannot be granted, and the words the claim's event has
// for it.
type refusal struct {
	what       string
	parameters map[string]string // a class of its own, if set
	claim      func(*workload.Claim)
	says       []string
}

var refusals = []refusal{
	{what: "an unknown mode", parameters: map[string]string{"mode": "zfs"}, says: []string{"mode", "zfs", "lvm", "device", "hostpath"}},
	{what: "a misspelt class parameter", parameters: map[string]string{"mode": "lvm", "poool": "fast"}, says: []string{"poool", "pool"}},
	{what: "a pool that does not exist", parameters: map[string]string{"mode": "lvm", "pool": "nowhere"}, says: []string{"nowhere", "PoolSet"}},
	{what: "a filesystem nobody makes", parameters: map[string]string{"mode": "device", "csi.storage.k8s.io/fstype": "zfs"}, says: []string{"zfs", "ext4", "xfs"}},
	{what: "more than any disk has", claim: func(c *workload.Claim) { c.Size = "900Ti" }, says: []string{"900Ti"}},
	{what: "access by many nodes", claim: func(c *workload.Claim) { c.AccessMode = corev1.ReadWriteMany }, says: []string{"ReadWriteMany", "ReadWriteOnce"}},
	{what: "a selector", claim: func(c *workload.Claim) {
		c.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "mine"}}
	}, says: []string{"selector"}},
}

var _ = Describe("A claim that asks for", Label("refusals"), func() {
	for _, refusal := range refusals {
		It(refusal.what+" is told so, and leaves nothing", func(ctx SpecContext) {
			space := newSpace(ctx)
			claim := kinds[0].claim("refused")
			if refusal.parameters != nil {
				claim.Class = newClass(ctx, refusal.parameters)
			}
			if refusal.claim != nil {
				refusal.claim(&claim)
			}
			object, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
			_, err = space.CreatePod(ctx, workload.Pod{Name: "refused", Claims: []string{"refused"}})
			Expect(err).NotTo(HaveOccurred())
			expectToldOn(ctx, space, object, refusal.says)
			expectNoVolumeFor(ctx, object)
		}, SpecTimeout(patience))
	}

	It("a size of 0 is refused by Kubernetes itself", func(ctx SpecContext) {
		space := newSpace(ctx)
		claim := kinds[0].claim("nothing")
		claim.Size = "0"
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).To(HaveOccurred())
	}, SpecTimeout(patience))

	for program, mode := range map[string]kind{"mkfs.xfs": kinds[1], "lvm": kinds[0]} {
		It("a node without "+program+" is told so, and leaves nothing", Serial, func(ctx SpecContext) {
			needs(CanExec)
			node := suite.nodes[0]
			path := strings.TrimSpace(execOn(ctx, node, "command -v "+program))
			execOn(ctx, node, "mv "+path+" "+path+".hidden")
			DeferCleanup(func(ctx SpecContext) { execOn(ctx, node, "mv "+path+".hidden "+path) }, NodeTimeout(time.Minute))
			space := newSpace(ctx)
			object, err := space.CreateClaim(ctx, mode.claim("tool"))
			Expect(err).NotTo(HaveOccurred())
			_, err = space.CreatePod(ctx, workload.Pod{Name: "tool", Claims: []string{"tool"}, Node: node})
			Expect(err).NotTo(HaveOccurred())
			expectToldOn(ctx, space, object, []string{program, node, "install"})
			Expect(space.DeletePod(ctx, "tool")).To(Succeed())
			Expect(space.DeleteClaim(ctx, "tool")).To(Succeed())
			expectNoVolumeFor(ctx, object)
		}, SpecTimeout(patience))
	}
})

// newClass makes a StorageClass of ours for one spec.
func newClass(ctx context.Context, parameters map[string]string) string {
	GinkgoHelper()
	binding, expandable := storagev1.VolumeBindingWaitForFirstConsumer, true
	class := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: "e2e-" + rand5()},
		Provisioner:       v1alpha1.DriverName,
		Parameters:        parameters,
		VolumeBindingMode: &binding,

		AllowVolumeExpansion: &expandable,
	}
	Expect(suite.client.Create(ctx, class)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(suite.client.Delete(ctx, class)).To(Succeed()) }, NodeTimeout(time.Minute))
	return class.Name
}

// expectToldOn waits for a warning on the claim that has all the words.
func expectToldOn(ctx context.Context, space *workload.Space, claim *corev1.PersistentVolumeClaim, words []string) {
	GinkgoHelper()
	expectTold(ctx, space, claim, words)
}

// expectTold waits until a warning on an object has all the words.
func expectTold(ctx context.Context, space *workload.Space, object client.Object, words []string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		events, err := space.Events(ctx, object.GetUID())
		g.Expect(err).NotTo(HaveOccurred())
		for _, event := range events {
			if !strings.HasPrefix(event, "Warning") {
				continue
			}
			missing := 0
			for _, word := range words {
				if !strings.Contains(event, word) {
					missing++
				}
			}
			if missing == 0 {
				return
			}
		}
		g.Expect(events).To(ContainElement("a warning with the words "+strings.Join(words, ", ")), "events on %s", object.GetName())
	}).WithContext(ctx).WithTimeout(90 * time.Second).WithPolling(time.Second).Should(Succeed())
}

// expectNoVolumeFor sees that nothing was made for a claim.
func expectNoVolumeFor(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		volumes := &v1alpha1.LocalVolumeList{}
		g.Expect(suite.client.List(ctx, volumes)).To(Succeed())
		for _, volume := range volumes.Items {
			if volume.Spec.ClaimRef != nil {
				g.Expect(volume.Spec.ClaimRef.UID).NotTo(Equal(claim.UID), "LocalVolume %s was made for a refused claim", volume.Name)
			}
		}
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
}
