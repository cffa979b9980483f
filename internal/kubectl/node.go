// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// whyNode answers for a node.
func (p *plugin) whyNode(ctx context.Context, name string) (*answer, error) {
	a := &answer{About: "node/" + name}
	node := &corev1.Node{}
	err := p.client.Get(ctx, client.ObjectKey{Name: name}, node)
	switch {
	case apierrors.IsNotFound(err):
		a.blame("There is no node %s.", name)
	case err != nil:
		return nil, fmt.Errorf("read node %s: %w", name, err)
	default:
		a.sayNode(node)
	}
	agents, err := p.agents(ctx)
	if err != nil {
		return nil, err
	}
	if pod := agents[name]; pod == nil {
		a.blame("No agent of Berth is on it: no volume can be made, mounted or deleted there. See the DaemonSet %s in namespace %s.", agentName, p.o.SystemNamespace)
	} else if ok, why := podReady(pod); !ok {
		a.blame("Its agent, pod %s, is not ready: %s", pod.Name, why)
	} else if err := p.sayRegistered(ctx, a, name); err != nil {
		return nil, err
	}
	return a, p.sayContents(ctx, a, name, node.Spec.Unschedulable)
}

func (a *answer) sayNode(node *corev1.Node) {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			a.blame("It is not ready since %s: %s", c.LastTransitionTime.UTC().Format("2006-01-02 15:04 MST"), c.Message)
		}
	}
	if node.Spec.Unschedulable {
		a.say("It is cordoned: no new pod is scheduled there, and so no new volume is made there.")
	}
}

// sayRegistered says whether kubelet knows the driver.
func (p *plugin) sayRegistered(ctx context.Context, a *answer, name string) error {
	node := &storagev1.CSINode{}
	if err := client.IgnoreNotFound(p.client.Get(ctx, client.ObjectKey{Name: name}, node)); err != nil {
		return fmt.Errorf("read CSINode %s: %w", name, err)
	}
	if !slices.ContainsFunc(node.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == berth.DriverName }) {
		a.blame("Its agent is ready, and its kubelet does not know the driver %s: no volume can be mounted there. See the log of the agent for its registration.", berth.DriverName)
		return nil
	}
	a.say("Its agent is ready and registered with kubelet.")
	return nil
}

// sayContents says what Berth has on a node, and what waits for one that is cordoned.
func (p *plugin) sayContents(ctx context.Context, a *answer, name string, cordoned bool) error {
	pools, err := p.poolRows(ctx)
	if err != nil {
		return err
	}
	for _, pool := range pools {
		switch {
		case pool.Node != name:
		case pool.Ready && pool.State == string(berth.PoolHealthy):
			a.say("Pool %s is healthy: %s of %s are free.", pool.Name, bytes(pool.Free), bytes(pool.Capacity))
		default:
			a.blame("Pool %s is %s, %s: %s", pool.Name, orNone(pool.State), orNone(pool.Reason), pool.Message)
		}
	}
	volumes, err := p.volumeRows(ctx)
	if err != nil {
		return err
	}
	count := 0
	var held []string
	for _, v := range volumes {
		if v.Node != name {
			continue
		}
		count++
		if v.Claim != "" {
			held = append(held, heldBy(v))
		}
		if !v.Ready && !v.Deleting && v.Reason != "" {
			a.blame("Volume %s of claim %s is not ready, %s: %s", v.Name, orNone(v.Claim), v.Reason, v.Message)
		}
	}
	if cordoned && len(held) > 0 {
		a.say("The volumes of these claims are on it, so that pods which use them run nowhere else and wait until it is uncordoned: %s. Their data stay there, also when the node is drained.", firstOf(held))
	}
	devices := &berth.BlockDeviceList{}
	if err := p.list(ctx, devices, "BlockDevices"); err != nil {
		return err
	}
	var used, free, others int
	for i := range devices.Items {
		d := &devices.Items[i]
		switch {
		case d.Spec.NodeName != name:
		case d.Spec.ClaimRef != nil:
			used++
		case meta.IsStatusConditionTrue(d.Status.Conditions, berth.BlockDeviceUsable):
			free++
		default:
			others++
		}
	}
	a.say("It has %d volumes, and %d disks: %d in use by Berth, %d free, %d that cannot be used.", count, used+free+others, used, free, others)
	return nil
}

// heldBy names a volume's claim, and the pods that use it.
func heldBy(v volumeRow) string {
	if len(v.Pods) == 0 {
		return v.Claim
	}
	return fmt.Sprintf("%s (pod %s)", v.Claim, strings.Join(v.Pods, ", "))
}

// firstOf lists what a person reads, and says how many there are beside it.
func firstOf(names []string) string {
	const most = 20
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more (kubectl berth volumes)", strings.Join(names[:most], ", "), len(names)-most)
}
