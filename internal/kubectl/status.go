// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
)

const (
	agentName       = "berth-node-agent"
	provisionerName = "berth-provisioner"
	nameLabel       = "app.kubernetes.io/name"
)

// trouble is something that is not as it should be.
type trouble struct {
	Object  string `json:"object"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// overview is what status says.
type overview struct {
	Namespace   string         `json:"namespace"`
	Provisioner string         `json:"provisioner"`
	Agents      string         `json:"agents"`
	Pools       map[string]int `json:"poolsByState"`
	Volumes     map[string]int `json:"volumesByReason"`
	Disks       map[string]int `json:"disksByState"`
	Troubles    []trouble      `json:"troubles"`
}

// status says how everything is; it is troubled when something is not as it should be.
func (p *plugin) status(ctx context.Context, _ []string) (bool, error) {
	o := overview{Namespace: p.o.SystemNamespace, Pools: map[string]int{}, Volumes: map[string]int{}, Disks: map[string]int{}, Troubles: []trouble{}}
	for _, look := range []func(context.Context, *overview) error{p.lookAtComponents, p.lookAtPools, p.lookAtVolumes, p.lookAtDisks, p.lookAtClaims} {
		if err := look(ctx, &o); err != nil {
			return false, err
		}
	}
	if p.o.Output == "json" {
		return len(o.Troubles) > 0, p.json(o)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 3, ' ', 0) //nolint:mnd // as kubectl's own tables
	for _, line := range [][2]string{
		{"Provisioner", o.Provisioner}, {"Agents", o.Agents}, {"Pools", counts(o.Pools)}, {"Volumes", counts(o.Volumes)}, {"Disks", counts(o.Disks)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	if err := w.Flush(); err != nil {
		return false, err
	}
	if len(o.Troubles) == 0 {
		fmt.Fprintln(p.out, "\nNothing is wrong.")
		return false, nil
	}
	fmt.Fprintln(p.out, "\nWhat is wrong:")
	for _, t := range o.Troubles {
		fmt.Fprintf(p.out, "  %s: %s\n    %s\n", t.Object, t.Reason, t.Message)
	}
	return true, nil
}

func (o *overview) add(object, reason, message string) {
	o.Troubles = append(o.Troubles, trouble{object, cmp.Or(reason, "Unknown"), cmp.Or(message, "nothing more is known")})
}

// counts writes how many there are of what, the most first.
func counts(of map[string]int) string {
	sum := 0
	words := slices.SortedFunc(maps.Keys(of), func(a, b string) int { return cmp.Or(cmp.Compare(of[b], of[a]), cmp.Compare(a, b)) })
	for i, word := range words {
		sum += of[word]
		words[i] = fmt.Sprintf("%d %s", of[word], word)
	}
	if sum == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func (p *plugin) lookAtComponents(ctx context.Context, o *overview) error {
	deployment := &appsv1.Deployment{}
	err := p.client.Get(ctx, client.ObjectKey{Namespace: p.o.SystemNamespace, Name: provisionerName}, deployment)
	switch {
	case apierrors.IsNotFound(err):
		o.Provisioner = "not installed"
		o.add("deployment/"+provisionerName, "NotInstalled", fmt.Sprintf("there is none in namespace %s; name another with --berth-namespace", p.o.SystemNamespace))
	case err != nil:
		return fmt.Errorf("read deployment %s: %w", provisionerName, err)
	default:
		wanted := int32(1)
		if deployment.Spec.Replicas != nil {
			wanted = *deployment.Spec.Replicas
		}
		o.Provisioner = fmt.Sprintf("%d of %d ready", deployment.Status.ReadyReplicas, wanted)
		if deployment.Status.ReadyReplicas == 0 {
			o.add("deployment/"+provisionerName, "NotReady", "no replica is ready: no claim is served; see its pods' logs")
		}
	}
	set := &appsv1.DaemonSet{}
	err = p.client.Get(ctx, client.ObjectKey{Namespace: p.o.SystemNamespace, Name: agentName}, set)
	if apierrors.IsNotFound(err) {
		o.Agents = "not installed"
		o.add("daemonset/"+agentName, "NotInstalled", "there is none in namespace "+p.o.SystemNamespace)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read daemonset %s: %w", agentName, err)
	}
	o.Agents = fmt.Sprintf("%d of %d ready", set.Status.NumberReady, set.Status.DesiredNumberScheduled)
	agents, err := p.agents(ctx)
	if err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(agents)) {
		if ok, why := podReady(agents[node]); !ok {
			o.add("node/"+node, "AgentNotReady", fmt.Sprintf("pod %s: %s", agents[node].Name, why))
		}
	}
	return nil
}

// agents returns the agent's pod of each node that has one. While one is replaced there are two,
// and more where some were evicted.
func (p *plugin) agents(ctx context.Context) (map[string]*corev1.Pod, error) {
	pods := &corev1.PodList{}
	if err := p.list(ctx, pods, "the agents' pods", client.InNamespace(p.o.SystemNamespace), client.MatchingLabels{nameLabel: agentName}); err != nil {
		return nil, err
	}
	agents := map[string]*corev1.Pod{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if node := pod.Spec.NodeName; node != "" && (agents[node] == nil || supersedes(pod, agents[node])) {
			agents[node] = pod
		}
	}
	return agents, nil
}

// supersedes reports whether a pod says more of its node's agent than another one there: it is
// ready, or is not about to go, or has not ended, or is younger.
func supersedes(pod, other *corev1.Pod) bool {
	for _, is := range []func(*corev1.Pod) bool{
		func(p *corev1.Pod) bool { ready, _ := podReady(p); return ready },
		func(p *corev1.Pod) bool { return p.DeletionTimestamp == nil },
		func(p *corev1.Pod) bool {
			return p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded
		},
	} {
		if is(pod) != is(other) {
			return is(pod)
		}
	}
	return other.CreationTimestamp.Before(&pod.CreationTimestamp)
}

// podReady reports whether a pod is ready, and why not.
func podReady(pod *corev1.Pod) (bool, string) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, ""
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		switch waiting, terminated := status.State.Waiting, status.State.Terminated; {
		case waiting != nil:
			return false, fmt.Sprintf("container %s waits: %s %s", status.Name, waiting.Reason, waiting.Message)
		case terminated != nil:
			return false, fmt.Sprintf("container %s has ended with %d: %s", status.Name, terminated.ExitCode, terminated.Reason)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return false, c.Message
		}
	}
	return false, "it is " + string(pod.Status.Phase) + " and not ready"
}

func (p *plugin) lookAtPools(ctx context.Context, o *overview) error {
	rows, err := p.poolRows(ctx)
	for _, row := range rows {
		o.Pools[cmp.Or(row.State, string(berth.PoolPending))]++
		if !row.Ready || row.State != string(berth.PoolHealthy) {
			o.add("pool/"+row.Name, row.Reason, row.Message)
		}
	}
	return err
}

func (p *plugin) lookAtVolumes(ctx context.Context, o *overview) error {
	rows, err := p.volumeRows(ctx)
	for _, row := range rows {
		switch {
		case row.Deleting:
			o.Volumes["being deleted"]++
		case row.Unwell:
			o.Volumes["not well"]++
			o.add("localvolume/"+row.Name, row.Reason, row.Message)
		case row.Ready:
			o.Volumes["ready"]++
		default:
			o.Volumes[cmp.Or(row.Reason, "being made")]++
			if row.Reason != "" {
				o.add("localvolume/"+row.Name, row.Reason, row.Message)
			}
		}
	}
	return err
}

func (p *plugin) lookAtDisks(ctx context.Context, o *overview) error {
	devices := &berth.BlockDeviceList{}
	if err := p.list(ctx, devices, "BlockDevices"); err != nil {
		return err
	}
	for i := range devices.Items {
		d := &devices.Items[i]
		switch {
		case d.Spec.ClaimRef != nil:
			o.Disks["in use"]++
		case meta.IsStatusConditionTrue(d.Status.Conditions, berth.BlockDeviceUsable):
			o.Disks["free"]++
		default:
			o.Disks["not usable"]++
		}
		if c := meta.FindStatusCondition(d.Status.Conditions, berth.BlockDeviceHealthy); c != nil && c.Status == metav1.ConditionFalse {
			o.add("blockdevice/"+d.Name, c.Reason, fmt.Sprintf("%s on %s: %s", d.Status.Path, d.Spec.NodeName, c.Message))
		}
	}
	return nil
}

// lookAtClaims says why claims of Berth's classes wait.
func (p *plugin) lookAtClaims(ctx context.Context, o *overview) error {
	classes, claims := &storagev1.StorageClassList{}, &corev1.PersistentVolumeClaimList{}
	if err := p.list(ctx, classes, "StorageClasses"); err != nil {
		return err
	}
	if err := p.list(ctx, claims, "claims"); err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, class := range classes.Items {
		ours[class.Name] = class.Provisioner == berth.DriverName
	}
	for i := range claims.Items {
		claim := &claims.Items[i]
		if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil || !ours[*claim.Spec.StorageClassName] {
			continue
		}
		text, err := p.judge(ctx, claim)
		if err != nil {
			return err
		}
		if text != "" {
			o.add(fmt.Sprintf("pvc/%s/%s", claim.Namespace, claim.Name), "Pending", text)
		}
	}
	return nil
}

// judge is what the provisioner would tell the claim.
func (p *plugin) judge(ctx context.Context, claim *corev1.PersistentVolumeClaim) (string, error) {
	return (&provision.Advisor{Reader: p.client, Namespace: p.o.SystemNamespace}).Judge(ctx, claim)
}
