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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// What is on the nodes does not depend on what runs elsewhere (invariant I5). Serial: all
// nodes lose it.
var _ = Describe("The control plane", Label("control-plane", "long"), Serial, func() {
	It("may be away: pods keep their volumes and give them back, and all goes on afterwards", func(ctx SpecContext) {
		needs(CanControl, CanExec)
		node := suite.nodes[0]
		space := newSpace(ctx)
		used := []kind{kinds[0], kinds[5]}
		holder := workload.Pod{Name: "holder", Node: node}
		var places []string
		for i, kind := range used {
			skipWithoutClass(kind)
			_, err := space.CreateClaim(ctx, kind.claim(claimName(i)))
			Expect(err).NotTo(HaveOccurred())
			holder = kind.with(holder, claimName(i))
			places = append(places, kind.place(claimName(i)))
		}
		// A line each second, and at the end as many lines as were written.
		holder.Script = fmt.Sprintf(`set -e
n=0
end=$(($(date +%%s) + %d))
while [ "$(date +%%s)" -lt $end ]; do
  n=$((n + 1))
  for f in %[2]s; do echo line >>$f; done
  sync
  sleep 1
done
for f in %[2]s; do [ "$(wc -l <$f)" -eq $n ]; done
echo kept >/dev/termination-log
`, int((options.outage+90*time.Second)/time.Second), strings.Join(places, " "))
		// It does not end when it is told to, so that the kubelet takes its volume away when nobody
		// can be asked any more.
		leaver := kinds[0].with(workload.Pod{Name: "leaver", Node: node, Script: kinds[0].writeScript("leaving") + "\ntrap '' TERM\nsleep 1000"}, "leaving")
		_, err := space.CreateClaim(ctx, kinds[0].claim("leaving"))
		Expect(err).NotTo(HaveOccurred())
		for _, pod := range []workload.Pod{holder, leaver} {
			_, err := space.CreatePod(ctx, pod)
			Expect(err).NotTo(HaveOccurred())
			_, err = space.AwaitPod(ctx, pod.Name, corev1.PodRunning)
			Expect(err).NotTo(HaveOccurred())
		}
		held, leaving := volumeOf(ctx, boundVolume(ctx, space, claimName(0))), volumeOf(ctx, boundVolume(ctx, space, "leaving"))
		Eventually(mounted).WithContext(ctx).WithArguments(node, leaving).Should(BeTrue())
		before := &v1alpha1.LocalVolumeList{}
		Expect(suite.client.List(ctx, before)).To(Succeed())

		By("taking the control plane away, while a pod ends, and killing the agent")
		const grace = 20 // seconds, in which the control plane ends
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: space.Namespace, Name: leaver.Name}}
		Expect(suite.client.Delete(ctx, pod, client.GracePeriodSeconds(grace))).To(Succeed())
		DeferCleanup(suite.hosts.StartControlPlane, NodeTimeout(patience))
		Expect(suite.hosts.StopControlPlane(ctx)).To(Succeed())
		away := time.Now()
		killAgent(ctx, node)
		Eventually(mounted).WithContext(ctx).WithArguments(node, leaving).WithTimeout(patience).WithPolling(time.Second).
			Should(BeFalse(), "the volume of a pod that has ended without an API server")
		Consistently(mounted).WithContext(ctx).WithArguments(node, held).WithTimeout(max(time.Second, options.outage-time.Since(away))).WithPolling(5*time.Second).
			Should(BeTrue(), "the volume of a pod that runs")

		By("having it back")
		Expect(suite.hosts.StartControlPlane(ctx)).To(Succeed())
		awaitCluster(ctx)
		ended, err := space.AwaitPod(ctx, holder.Name, corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(ContainSubstring("kept"))
		Eventually(func(ctx context.Context) bool {
			return apierrors.IsNotFound(suite.client.Get(ctx, client.ObjectKeyFromObject(pod), pod))
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(BeTrue(), "the pod that ended meanwhile is gone")
		for _, volume := range before.Items {
			now := &v1alpha1.LocalVolume{}
			Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(&volume), now)).To(Succeed())
			Expect(now.UID).To(Equal(volume.UID))
			Expect(now.DeletionTimestamp).To(BeNil())
		}
		expectUsable(ctx, space, node, "fresh")
		_, _, err = space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "again", Script: kinds[0].readScript("leaving")}, "leaving"))
		Expect(err).NotTo(HaveOccurred())
	}, SpecTimeout(5*patience+20*time.Minute))

	It("may go back to an older state: nothing is deleted for it, and what is missing is said", func(ctx SpecContext) {
		needs(CanControl, CanExec, CanRestartKubelet)
		skipWithoutClass(kinds[0])
		lvm, node := kinds[0], suite.nodes[0]
		space := newSpace(ctx)
		write := func(claim string) (string, *v1alpha1.LocalVolume) {
			GinkgoHelper()
			_, err := space.CreateClaim(ctx, lvm.claim(claim))
			Expect(err).NotTo(HaveOccurred())
			written, _, err := space.RunPod(ctx, lvm.with(workload.Pod{Name: "writer-" + claim, Node: node, Script: lvm.writeScript(claim)}, claim))
			Expect(err).NotTo(HaveOccurred())
			return written, volumeOf(ctx, boundVolume(ctx, space, claim))
		}
		written, old := write("old")
		_, doomed := write("doomed")

		By("keeping the state, and going on")
		DeferCleanup(suite.hosts.StartControlPlane, NodeTimeout(patience))
		Expect(suite.hosts.SaveControlPlane(ctx, "e2e")).To(Succeed())
		awaitCluster(ctx)
		_, young := write("young")
		Expect(space.DeleteClaim(ctx, "doomed")).To(Succeed())
		expectGone(ctx, doomed)

		By("putting the old state back")
		Expect(suite.hosts.RestoreControlPlane(ctx, "e2e")).To(Succeed())
		// Kubernetes asks operators to start again what has a memory of its own, and its own nodes
		// do not come back without. Berth's agents notice it themselves.
		for _, node := range suite.nodes {
			execOn(ctx, node, "systemctl restart kube-proxy kubelet")
		}
		awaitCluster(ctx)
		err := suite.client.Get(ctx, client.ObjectKeyFromObject(young), young.DeepCopy())
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "the restored state is older than %s: %v", young.Name, err)
		Eventually(func(g Gomega, ctx context.Context) {
			_, said, _ := runPlugin(ctx, "orphans", "list")
			g.Expect(said).To(ContainSubstring(string(young.UID)))
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(doomed), doomed)).To(Succeed())
			condition := metav1.Condition{}
			for _, c := range doomed.Status.Conditions {
				if c.Type == v1alpha1.LocalVolumeReady {
					condition = c
				}
			}
			g.Expect(condition.Status).To(Equal(metav1.ConditionFalse))
			g.Expect(condition.Reason).To(Equal(v1alpha1.ReasonMissing), condition.Message)
		}).WithContext(ctx).WithTimeout(patience).WithPolling(2 * time.Second).Should(Succeed())
		read, _, err := space.RunPod(ctx, lvm.with(workload.Pod{Name: "reader", Script: lvm.readScript("old")}, "old"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))
		expectHeld(ctx, old)
		expectHeld(ctx, young)
		expectUsable(ctx, space, node, "fresh")

		By("giving up what is missing, and what nobody knows any more")
		Expect(space.DeleteClaim(ctx, "doomed")).To(Succeed())
		expectGone(ctx, doomed)
		expectHeld(ctx, young)
		left := leftOver{local: young}
		left.ask(ctx, left.request())
		DeferCleanup(func(ctx SpecContext) { left.ask(ctx) }, NodeTimeout(time.Minute))
		left.confirm(ctx, left.await(ctx, v1alpha1.PurgeQuarantined).Token)
		expectGone(ctx, young)
	}, SpecTimeout(6*patience))

	It("may lose the provisioner that leads, and then all of them, while claims wait", func(ctx SpecContext) {
		skipWithoutClass(kinds[5])
		space := newSpace(ctx)
		const claims = 6
		for round, kill := range []func(context.Context){
			func(ctx context.Context) { endPods(ctx, leaderOf(ctx)) },
			func(ctx context.Context) { endPods(ctx, "") },
		} {
			for i := range claims {
				name := fmt.Sprintf("claim-%d-%d", round, i)
				_, err := space.CreateClaim(ctx, kinds[5].claim(name))
				Expect(err).NotTo(HaveOccurred())
				_, err = space.CreatePod(ctx, kinds[5].with(workload.Pod{Name: name, Node: suite.nodes[i%len(suite.nodes)], Script: "true"}, name))
				Expect(err).NotTo(HaveOccurred())
			}
			kill(ctx)
			for i := range claims {
				_, err := space.AwaitPod(ctx, fmt.Sprintf("claim-%d-%d", round, i), corev1.PodSucceeded)
				Expect(err).NotTo(HaveOccurred())
			}
		}
		Expect(space.Remove(ctx)).To(Succeed())
		expectNothingLeft(ctx)
	}, SpecTimeout(3*patience))

	It("may have another time than a node", func(ctx SpecContext) {
		needs(CanExec, CanRestartKubelet)
		skipWithoutClass(kinds[0])
		space, node := newSpace(ctx), suite.nodes[0]
		_, err := space.CreateClaim(ctx, kinds[0].claim("kept"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "writer", Node: node, Script: kinds[0].writeScript("kept")}, "kept"))
		Expect(err).NotTo(HaveOccurred())
		ahead := false
		DeferCleanup(func(ctx SpecContext) {
			if ahead {
				execOn(ctx, node, "date -s '-1 day'")
			}
		}, NodeTimeout(time.Minute))
		for i, jump := range []string{"+1 day", "-1 day"} {
			By("letting it jump by " + jump)
			execOn(ctx, node, "date -s '"+jump+"'")
			ahead = i == 0
			expectUsable(ctx, space, node, fmt.Sprintf("fresh-%d", i))
			read, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: fmt.Sprintf("reader-%d", i), Script: kinds[0].readScript("kept")}, "kept"))
			Expect(err).NotTo(HaveOccurred())
			Expect(read).To(Equal(written))
		}
		Expect(space.Remove(ctx)).To(Succeed())
		expectNothingLeft(ctx)
	}, SpecTimeout(4*patience))
})

// mounted tells whether a node has a logical volume's filesystem mounted anywhere, by the
// kernel's table.
func mounted(ctx context.Context, node string, volume *v1alpha1.LocalVolume) (bool, error) {
	out, err := suite.hosts.Exec(ctx, node, fmt.Sprintf("grep -c -- '%s ' /proc/mounts || true", strings.ReplaceAll(volume.Status.LVM.LVName, "-", "--")))
	return strings.TrimSpace(out) != "0", err
}

// awaitCluster waits until all nodes and agents are ready, after the control plane was away.
func awaitCluster(ctx context.Context) {
	GinkgoHelper()
	for _, node := range suite.nodes {
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
	}
}

// expectUsable makes a volume on a node and writes to it.
func expectUsable(ctx context.Context, space *workload.Space, node, claim string) {
	GinkgoHelper()
	_, err := space.CreateClaim(ctx, kinds[0].claim(claim))
	Expect(err).NotTo(HaveOccurred())
	_, _, err = space.RunPod(ctx, kinds[0].with(workload.Pod{Name: claim, Node: node, Script: kinds[0].writeScript(claim)}, claim))
	Expect(err).NotTo(HaveOccurred())
}

// leaderOf is the name of the provisioner's pod that leads.
func leaderOf(ctx context.Context) string {
	GinkgoHelper()
	clients, err := kubernetes.NewForConfig(suite.config)
	Expect(err).NotTo(HaveOccurred())
	lease, err := clients.CoordinationV1().Leases(suite.description.Namespace).Get(ctx, "berth-provisioner", metav1.GetOptions{})
	Expect(err).NotTo(HaveOccurred())
	Expect(lease.Spec.HolderIdentity).NotTo(BeNil())
	name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	Expect(name).NotTo(BeEmpty())
	return name
}

// endPods ends pods of the provisioner without a word: that of a name, or all.
func endPods(ctx context.Context, name string) {
	GinkgoHelper()
	pods := &corev1.PodList{}
	Expect(suite.client.List(ctx, pods, client.InNamespace(suite.description.Namespace), client.MatchingLabels{"app.kubernetes.io/name": "berth-provisioner"})).To(Succeed())
	ended := 0
	for i := range pods.Items {
		if name == "" || pods.Items[i].Name == name {
			Expect(client.IgnoreNotFound(suite.client.Delete(ctx, &pods.Items[i], client.GracePeriodSeconds(0)))).To(Succeed())
			ended++
		}
	}
	Expect(ended).To(BeNumerically(">", 0), "pods of the provisioner")
}
