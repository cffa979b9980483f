// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// What is measured may be more than the limit by this factor: the kernel lets through
// what was saved up in the slice of time before. It may be any amount less, for the
// machine may be busy.
const overLimit = 1.3

var _ = Describe("Limits of a claim's VolumeAttributesClass", Label("limits"), func() {
	It("hold, are changed while the pod runs, outlive agent and pod, and can be taken away", Serial, func(ctx SpecContext) {
		node := nodeWithFio(ctx)
		// All are made before a claim asks for one: csi-resizer v2.3.0 does not look again for
		// a class that it did not find (docs/limitations.md).
		slow := newAttributesClass(ctx, map[string]string{"writeBandwidth": "1Mi", "readIOPS": "20"})
		other := newAttributesClass(ctx, map[string]string{"writeIOPS": "10", "readBandwidth": "512Ki"})
		none := newAttributesClass(ctx, map[string]string{"readIOPS": "max"})
		bad := newAttributesClass(ctx, map[string]string{"readIOPS": "many"})
		space := newSpace(ctx)
		claim := kinds[0].claim("data")
		claim.AttributesClass = slow
		object, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		running := kinds[0].with(fioPod("first", node), "data")
		pod := runningPod(ctx, space, running)
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		Expect(volume.Spec.VolumeAttributesClassName).To(HaveValue(Equal(slow)))
		local := volumeOf(ctx, volume)
		Expect(local.Status.Limits).To(HaveValue(Equal(v1alpha1.VolumeLimits{WriteBytesPerSecond: 1 << 20, ReadIOPS: 20})))
		file := workload.MountDirectory + "/data/content"
		expectSlow := func() {
			GinkgoHelper()
			Expect(fio(ctx, pod, file, "write", "64k").writeKiB).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*1024)))
			Expect(fio(ctx, pod, file, "randread", "4k").readIOPS).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*20)))
		}
		expectOther := func() {
			GinkgoHelper()
			Expect(fio(ctx, pod, file, "randwrite", "4k").writeIOPS).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*10)))
			Expect(fio(ctx, pod, file, "read", "64k").readKiB).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*512)))
		}
		expectSlow()

		By("giving a second pod of the node its own share")
		second := runningPod(ctx, space, kinds[0].with(fioPod("second", node), "data"))
		Expect(ioMax(ctx, second)).To(SatisfyAll(ContainSubstring("wbps=1048576 riops=20"), Equal(ioMax(ctx, pod))))
		Expect(space.DeletePod(ctx, "second")).To(Succeed())

		By("changing the class while the pod runs")
		modify(ctx, object, other)
		awaitModified(ctx, object, other)
		expectOther()

		By("killing the agent, and making the pod anew")
		killAgent(ctx, node)
		awaitAgent(ctx, node)
		expectOther()
		Expect(space.DeletePod(ctx, "first")).To(Succeed())
		pod = runningPod(ctx, space, running)
		expectOther()

		By("asking for what cannot be")
		modify(ctx, object, bad)
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
			g.Expect(object.Status.ModifyVolumeStatus).NotTo(BeNil())
			g.Expect(object.Status.ModifyVolumeStatus.Status).To(Equal(corev1.PersistentVolumeClaimModifyVolumeInfeasible))
		}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
		expectToldOn(ctx, space, object, []string{"readIOPS", "many", "from 1 to"})
		modify(ctx, object, other)
		awaitModified(ctx, object, other)
		expectOther()

		By("taking the limits away")
		modify(ctx, object, none)
		awaitModified(ctx, object, none)
		Expect(ioMax(ctx, pod)).To(BeEmpty())
		Expect(volumeOf(ctx, volume).Status.Limits).To(BeNil())
		Expect(fio(ctx, pod, file, "randwrite", "4k").writeIOPS).To(BeNumerically(">", overLimit*10), "without limits the disk does more, or nothing was shown above")
	}, SpecTimeout(2*patience))

	// The first spec is of a filesystem on lvm; these are the other kinds.
	for _, other := range []struct {
		kind
		Labels
	}{{kinds[2], nil}, {kinds[3], Label("long")}} {
		kind := other.kind
		It("hold for "+kind.name, other.Labels, func(ctx SpecContext) {
			skipWithoutClass(kind)
			node := nodeWithFio(ctx)
			space := newSpace(ctx)
			claim := kind.claim("data")
			claim.AttributesClass = newAttributesClass(ctx, map[string]string{"writeBandwidth": "1Mi", "readIOPS": "20"})
			_, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
			pod := runningPod(ctx, space, kind.with(fioPod("limited", node), "data"))
			Expect(fio(ctx, pod, kind.place("data"), "write", "64k").writeKiB).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*1024)))
			Expect(fio(ctx, pod, kind.place("data"), "randread", "4k").readIOPS).To(SatisfyAll(BeNumerically(">", 0), BeNumerically("<=", overLimit*20)))
		}, SpecTimeout(patience))
	}

	for what, refusal := range map[string]struct {
		kind       kind
		parameters map[string]string
		says       []string
	}{
		"a limit of nothing":                 {kinds[0], map[string]string{"writeIOPS": "0"}, []string{"writeIOPS", "from 1 to"}},
		"a limit of mode hostpath":           {kinds[5], map[string]string{"writeIOPS": "10"}, []string{"hostpath", "use a StorageClass of mode lvm or device"}},
		"something that Berth does not have": {kinds[0], map[string]string{"iops": "10"}, []string{`"iops"`, "readIOPS, writeIOPS, readBandwidth, writeBandwidth"}},
	} {
		It("that ask for "+what+" are refused, and leave nothing", func(ctx SpecContext) {
			skipWithoutClass(refusal.kind)
			space := newSpace(ctx)
			claim := refusal.kind.claim("refused")
			claim.AttributesClass = newAttributesClass(ctx, refusal.parameters)
			object, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
			_, err = space.CreatePod(ctx, workload.Pod{Name: "refused", Claims: []string{"refused"}})
			Expect(err).NotTo(HaveOccurred())
			expectToldOn(ctx, space, object, refusal.says)
			expectNoVolumeFor(ctx, object)
		}, SpecTimeout(patience))
	}
})

// newAttributesClass makes a VolumeAttributesClass for one spec.
func newAttributesClass(ctx context.Context, parameters map[string]string) string {
	GinkgoHelper()
	class := &storagev1.VolumeAttributesClass{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-" + rand5()},
		DriverName: v1alpha1.DriverName,
		Parameters: parameters,
	}
	Expect(suite.client.Create(ctx, class)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(suite.client.Delete(ctx, class)).To(Succeed()) }, NodeTimeout(time.Minute))
	return class.Name
}

// modify asks for another class.
func modify(ctx context.Context, claim *corev1.PersistentVolumeClaim, class string) {
	GinkgoHelper()
	patch := fmt.Sprintf(`{"spec":{"volumeAttributesClassName":%q}}`, class)
	Expect(suite.client.Patch(ctx, claim, client.RawPatch(types.MergePatchType, []byte(patch)))).To(Succeed())
}

// awaitModified waits until the claim has the class.
func awaitModified(ctx context.Context, claim *corev1.PersistentVolumeClaim, class string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(claim), claim)).To(Succeed())
		g.Expect(claim.Status.CurrentVolumeAttributesClassName).To(HaveValue(Equal(class)))
		g.Expect(claim.Status.ModifyVolumeStatus).To(BeNil())
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
}

// nodeWithFio is a node that has fio, which pods run from there.
func nodeWithFio(ctx context.Context) string {
	GinkgoHelper()
	needs(CanExec)
	node := suite.nodes[0]
	if _, err := suite.hosts.Exec(ctx, node, "test -x /usr/bin/fio && command -v ctr"); err != nil {
		Skip("the nodes have no fio")
	}
	return node
}

// fioPod sees the programs of its node, and sleeps.
func fioPod(name, node string) workload.Pod {
	return workload.Pod{Name: name, Node: node, HostPaths: map[string]string{"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64"}}
}

func runningPod(ctx context.Context, space *workload.Space, pod workload.Pod) *corev1.Pod {
	GinkgoHelper()
	_, err := space.CreatePod(ctx, pod)
	Expect(err).NotTo(HaveOccurred())
	running, err := space.AwaitPod(ctx, pod.Name, corev1.PodRunning)
	Expect(err).NotTo(HaveOccurred())
	return running
}

// measured is what fio did in a second.
type measured struct{ readKiB, readIOPS, writeKiB, writeIOPS float64 }

// fio does direct I/O of one kind for some seconds, in the pod's container.
func fio(ctx context.Context, pod *corev1.Pod, place, kind, block string) (m measured) {
	GinkgoHelper()
	container := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	out := execOn(ctx, pod.Spec.NodeName, fmt.Sprintf(
		"ctr -n k8s.io task exec --exec-id fio-%s %s /usr/bin/fio --name=e2e --filename=%s --rw=%s --bs=%s --size=4M --direct=1 --ioengine=psync --time_based --runtime=6 --output-format=terse --terse-version=3",
		rand5(), container, place, kind, block))
	// fio(1), "TERSE OUTPUT": bandwidth in KiB/s and IOPS of reads, then of writes.
	fields := strings.Split(strings.TrimSpace(out), ";")
	Expect(len(fields)).To(BeNumerically(">", 48), out)
	for i, value := range map[int]*float64{6: &m.readKiB, 7: &m.readIOPS, 47: &m.writeKiB, 48: &m.writeIOPS} {
		var err error
		*value, err = strconv.ParseFloat(fields[i], 64)
		Expect(err).NotTo(HaveOccurred())
	}
	AddReportEntry("fio "+kind, fmt.Sprintf("%s: read %.0f KiB/s, %.0f IOPS; write %.0f KiB/s, %.0f IOPS", block, m.readKiB, m.readIOPS, m.writeKiB, m.writeIOPS))
	return m
}

// ioMax is what the pod's cgroup is held to.
func ioMax(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	uid := string(pod.UID)
	return strings.TrimSpace(execOn(ctx, pod.Spec.NodeName, fmt.Sprintf(
		"cat $(find /sys/fs/cgroup -type d '(' -name '*pod%s' -o -name '*pod%s.slice' ')')/io.max", uid, strings.ReplaceAll(uid, "-", "_"))))
}
