// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

func rand5() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b strings.Builder
	for range 5 {
		b.WriteByte(letters[rand.IntN(len(letters))])
	}
	return b.String()
}

// agentPod returns the agent's pod on a node, nil if there is none.
func agentPod(ctx context.Context, node string) (*corev1.Pod, error) {
	pods := &corev1.PodList{}
	err := suite.client.List(ctx, pods, client.InNamespace(suite.description.Namespace),
		client.MatchingLabels{"app.kubernetes.io/name": "berth-node-agent"},
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("spec.nodeName", node)})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			return &pods.Items[i], nil
		}
	}
	return nil, nil
}

// awaitAgent waits until a node's agent is ready and its driver registered.
func awaitAgent(ctx context.Context, node string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		pod, err := agentPod(ctx, node)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(pod).NotTo(BeNil(), "no agent on %s", node)
		g.Expect(podReady(pod)).To(BeTrue(), "the agent on %s is not ready", node)
		registered := &storagev1.CSINode{}
		g.Expect(suite.client.Get(ctx, client.ObjectKey{Name: node}, registered)).To(Succeed())
		names := []string{}
		for _, driver := range registered.Spec.Drivers {
			names = append(names, driver.Name)
		}
		g.Expect(names).To(ContainElement(v1alpha1.DriverName))
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}

// restartAgent kills the agent of a node and waits until it has a process again, ready
// or not. Where kubelet waits longer and longer between the starts of what ended so
// often, as it does by default, the pod is replaced.
func restartAgent(ctx context.Context, node string) error {
	before, err := agentPod(ctx, node)
	if err != nil {
		return err
	}
	if _, err := suite.hosts.Exec(ctx, node, killAgentScript); err != nil {
		return fmt.Errorf("kill the agent on %s: %w", node, err)
	}
	const patienceWithKubelet = 10 * time.Second
	var backingOff time.Time
	return untilAgent(ctx, node, func(pod *corev1.Pod) (bool, error) {
		if before == nil || pod.UID != before.UID {
			return agentContainer(pod).State.Running != nil, nil
		}
		was, is := agentContainer(before), agentContainer(pod)
		switch {
		case is.State.Running != nil:
			return is.ContainerID != was.ContainerID, nil
		case is.State.Waiting == nil:
			backingOff = time.Time{}
		case backingOff.IsZero():
			backingOff = time.Now()
		case time.Since(backingOff) > patienceWithKubelet:
			if err := client.IgnoreNotFound(suite.client.Delete(ctx, pod, client.GracePeriodSeconds(0))); err != nil {
				return false, fmt.Errorf("delete the agent's pod on %s: %w", node, err)
			}
		}
		return false, nil
	})
}

// agentContainer is the status of the agent's one container.
func agentContainer(pod *corev1.Pod) corev1.ContainerStatus {
	if len(pod.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return pod.Status.ContainerStatuses[0]
}

// untilReady waits until a node's agent is ready.
func untilReady(ctx context.Context, node string) error {
	return untilAgent(ctx, node, func(pod *corev1.Pod) (bool, error) { return podReady(pod), nil })
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// untilAgent waits until a node's agent has a pod of which something is true. Its error
// tells how the agent was found last.
func untilAgent(ctx context.Context, node string, holds func(*corev1.Pod) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var pod *corev1.Pod
	for tick := time.Tick(time.Second); ; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the agent on %s: %w: %s", node, ctx.Err(), describeAgent(context.WithoutCancel(ctx), pod))
		case <-tick:
		}
		found, err := agentPod(ctx, node)
		if err != nil {
			return err
		}
		pod = found
		if pod == nil {
			continue
		}
		if done, err := holds(pod); done || err != nil {
			return err
		}
	}
}

// describeAgent tells how an agent's pod is, and what the agent said last.
func describeAgent(ctx context.Context, pod *corev1.Pod) string {
	if pod == nil {
		return "it has no pod"
	}
	const longest, lines = 20 * time.Second, 30
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var b strings.Builder
	fmt.Fprintf(&b, "pod %s %s\n", pod.Name, pod.Status.Phase)
	for _, condition := range pod.Status.Conditions {
		fmt.Fprintf(&b, "    %s=%s %s: %s\n", condition.Type, condition.Status, condition.Reason, condition.Message)
	}
	fmt.Fprintf(&b, "    %+v\n", agentContainer(pod).State)
	events, _ := (&workload.Space{Client: suite.client, Namespace: pod.Namespace}).Events(ctx, pod.UID)
	for _, event := range events {
		fmt.Fprintf(&b, "    %s\n", event)
	}
	clients, err := kubernetes.NewForConfig(suite.config)
	if err != nil {
		return b.String()
	}
	said, err := clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: new(int64(lines))}).DoRaw(ctx)
	if err != nil {
		fmt.Fprintf(&b, "    its log: %v\n", err)
	}
	b.Write(said)
	return b.String()
}

// killAgentScript kills the agent's process as the kernel would: no warning. Its id is
// looked for by the file it runs, and only on this node; by its name first, for that
// starts no program. A program for every process of an emulated node takes longer than
// what the kill is to interrupt.
const killAgentScript = `for p in /proc/[0-9]*; do
  read -r name < $p/comm && [ "$name" = node-agent ] &&
    [ "$(readlink $p/exe)" = /node-agent ] && kill -9 ${p#/proc/}
done 2>/dev/null; true`

// killAgent kills the agent of a node.
func killAgent(ctx context.Context, node string) {
	GinkgoHelper()
	execOn(ctx, node, killAgentScript)
}

// awaitNode waits until a node is Ready, or is not.
func awaitNode(ctx context.Context, name string, ready bool) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		node := &corev1.Node{}
		g.Expect(suite.client.Get(ctx, client.ObjectKey{Name: name}, node)).To(Succeed())
		is := false
		for _, condition := range node.Status.Conditions {
			is = is || condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue
		}
		g.Expect(is).To(Equal(ready), "node %s ready", name)
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}

// volumeOf returns the LocalVolume behind a PersistentVolume.
func volumeOf(ctx context.Context, volume *corev1.PersistentVolume) *v1alpha1.LocalVolume {
	GinkgoHelper()
	local := &v1alpha1.LocalVolume{}
	Expect(suite.client.Get(ctx, client.ObjectKey{Name: volume.Spec.CSI.VolumeHandle}, local)).To(Succeed())
	return local
}

// describeState is what a person would look at first when a spec has failed.
func describeState(ctx context.Context, space *workload.Space) string {
	var b strings.Builder
	claims := &corev1.PersistentVolumeClaimList{}
	if err := suite.client.List(ctx, claims, client.InNamespace(space.Namespace)); err == nil {
		for _, claim := range claims.Items {
			fmt.Fprintf(&b, "claim %s %s volume=%s annotations=%v\n", claim.Name, claim.Status.Phase, claim.Spec.VolumeName, claim.Annotations)
			events, _ := space.Events(ctx, claim.UID)
			for _, event := range events {
				fmt.Fprintf(&b, "    %s\n", event)
			}
		}
	}
	pods := &corev1.PodList{}
	if err := suite.client.List(ctx, pods, client.InNamespace(space.Namespace)); err == nil {
		for _, pod := range pods.Items {
			fmt.Fprintf(&b, "pod %s %s on %s\n", pod.Name, pod.Status.Phase, pod.Spec.NodeName)
			events, _ := space.Events(ctx, pod.UID)
			for _, event := range events {
				fmt.Fprintf(&b, "    %s\n", event)
			}
		}
	}
	volumes := &v1alpha1.LocalVolumeList{}
	if err := suite.client.List(ctx, volumes); err == nil {
		for _, volume := range volumes.Items {
			fmt.Fprintf(&b, "localvolume %s on %s mode=%s deleting=%v\n", volume.Name, volume.Spec.NodeName, volume.Spec.Mode, volume.DeletionTimestamp)
			for _, condition := range volume.Status.Conditions {
				fmt.Fprintf(&b, "    %s=%s %s: %s\n", condition.Type, condition.Status, condition.Reason, condition.Message)
			}
		}
	}
	devices := &v1alpha1.BlockDeviceList{}
	if err := suite.client.List(ctx, devices); err == nil {
		for _, device := range devices.Items {
			message := ""
			for _, condition := range device.Status.Conditions {
				message += condition.Reason + ": " + condition.Message
			}
			fmt.Fprintf(&b, "blockdevice %s %s %s serial=%s %s %s %s\n", device.Name, device.Spec.NodeName, device.Status.Path, device.Status.Serial, device.Status.ClaimState, device.Status.State, message)
		}
	}
	return b.String()
}
