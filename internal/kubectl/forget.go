// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// allowDelete is the annotation without which the API server refuses to delete what stands for
// data (deploy/base/admission.yaml).
const allowDelete = "berth.dev/allow-delete"

// errCameBack says that an object was changed between the look at it and its removal.
var errCameBack = errors.New("it was changed meanwhile, so the node's agent may be back: nothing more was removed. Run kubectl berth why node/NODE, and forget-node again if the node is gone nevertheless")

// forgetNode removes the objects of a node that will not come back, of which only its agent
// could say that nothing is left of them on its disks. It is troubled when it refuses, and when
// the node turns out to live meanwhile.
func (p *plugin) forgetNode(ctx context.Context, args []string) (bool, error) {
	node := args[0]
	if p.o.Confirm != "" && p.o.Confirm != node {
		return false, fmt.Errorf("%w: --confirm is %q, and the node to forget is %q", errUsage, p.o.Confirm, node)
	}
	if p.o.Output == "json" && p.o.Confirm == "" && !p.o.DryRun {
		return false, fmt.Errorf("%w: with --output=json nobody is asked: give --dry-run or --confirm=%s", errUsage, node)
	}
	l, err := p.lossOf(ctx, node)
	if err != nil {
		return false, err
	}
	if p.o.Output == "json" {
		if err := p.json(l); err != nil {
			return false, err
		}
	} else if err := l.print(p.out); err != nil {
		return false, err
	}
	switch {
	case len(l.Refusals) > 0:
		return true, nil
	case l.nothing() || p.o.DryRun:
		return false, nil
	case p.o.Confirm == "":
		if err := p.ask(node); err != nil {
			return false, err
		}
		// Somebody who reads takes time, in which a node comes back.
		if _, refusals, err := p.alive(ctx, node); err != nil || len(refusals) > 0 {
			for _, refusal := range refusals {
				fmt.Fprintln(p.out, refusal)
			}
			return len(refusals) > 0, err
		}
	}
	for _, o := range l.removals {
		name := describe(o)
		err := p.removeForGood(ctx, o)
		if errors.Is(err, errCameBack) {
			fmt.Fprintf(p.errs, "%s: %v\n", name, err)
			return true, nil
		}
		if err != nil {
			return false, err
		}
		fmt.Fprintf(p.errs, "Removed %s.\n", name)
	}
	return false, nil
}

// ask has the node's name typed.
func (p *plugin) ask(node string) error {
	if p.in == nil {
		return fmt.Errorf("%w: nothing was changed: confirm with --confirm=%s", errUsage, node)
	}
	fmt.Fprintf(p.errs, "\nThis cannot be taken back. Type the name of the node to forget it: ")
	typed, err := bufio.NewReader(p.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the confirmation: %w", err)
	}
	if strings.TrimSpace(typed) != node {
		return fmt.Errorf("%w: nothing was changed: the name of the node was not typed, and neither was --confirm=%s given", errUsage, node)
	}
	return nil
}

// alive says in words how the node is, and why it cannot be forgotten.
func (p *plugin) alive(ctx context.Context, name string) (state string, refusals []string, err error) {
	node := &corev1.Node{}
	err = p.client.Get(ctx, client.ObjectKey{Name: name}, node)
	switch {
	case apierrors.IsNotFound(err):
		state = "deleted from Kubernetes"
	case err != nil:
		return "", nil, fmt.Errorf("read node %s: %w", name, err)
	case p.o.Machine != "":
		return p.replaced(node)
	default:
		state = "not ready"
		for _, c := range node.Status.Conditions {
			if c.Type != corev1.NodeReady {
				continue
			}
			if c.Status == corev1.ConditionTrue {
				state = "ready"
				refusals = append(refusals, fmt.Sprintf(
					"Node %s is ready, so its agent can remove its volumes properly: drain the node, delete the claims whose volumes are on it and the Pools, and then the node.", name))
				break
			}
			state = "not ready since " + c.LastTransitionTime.UTC().Format("2006-01-02 15:04 MST")
		}
	}
	agents, err := p.agents(ctx)
	if err != nil {
		return "", nil, err
	}
	if pod := agents[name]; pod != nil && len(refusals) == 0 {
		if ok, _ := podReady(pod); ok {
			refusals = append(refusals, fmt.Sprintf(
				"The agent of node %s, pod %s, is ready. Kubernetes takes a minute to notice that a node has gone: wait for that. If the machine is off, delete its Node object.", name, pod.Name))
		}
	}
	return state, refusals, nil
}

// replaced says whether the node is another machine than the one that is to be forgotten. It
// may be ready then: its agent leaves alone what is not of its own machine.
func (p *plugin) replaced(node *corev1.Node) (state string, refusals []string, err error) {
	now := node.Status.NodeInfo.MachineID
	switch now {
	case "":
		refusals = append(refusals, fmt.Sprintf("Which machine node %s is now cannot be told: its kubelet has not said it.", node.Name))
	case p.o.Machine:
		refusals = append(refusals, fmt.Sprintf("Node %s is the machine %s: what is on it is not forgotten while it is there.", node.Name, now))
	}
	return "the machine " + orNone(now) + " now", refusals, nil
}

// removeForGood removes one object past the agent that its finalizer waits for.
//
// The finalizer goes first, and then the object at that very version. So the object is never
// seen to be both wanted gone and waiting for its agent, which is what an agent that comes back
// takes for the order to wipe (I5); and when one is back and has written to it, the deletion
// fails. An object whose deletion was asked for before goes with its finalizer.
func (p *plugin) removeForGood(ctx context.Context, o client.Object) error {
	before := o.DeepCopyObject().(client.Object) //nolint:forcetypeassert,errcheck // a copy is what it is a copy of
	o.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == berth.AgentFinalizer }))
	deleting := o.GetDeletionTimestamp() != nil
	if isGuarded(o) && !deleting {
		annotations := map[string]string{allowDelete: "true"}
		for key, value := range o.GetAnnotations() {
			if key != allowDelete {
				annotations[key] = value
			}
		}
		o.SetAnnotations(annotations)
	}
	err := p.client.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return errCameBack
	case err != nil:
		return fmt.Errorf("take the finalizer from %s: %w", describe(o), err)
	case deleting:
		return nil
	}
	uid, version := o.GetUID(), o.GetResourceVersion()
	err = p.client.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
	switch {
	case apierrors.IsConflict(err):
		return errors.Join(errCameBack, p.guardAgain(ctx, o))
	case client.IgnoreNotFound(err) != nil:
		return errors.Join(fmt.Errorf("delete %s: %w", describe(o), err), p.guardAgain(ctx, o))
	}
	return nil
}

// guardAgain takes the permission to delete an object back.
func (p *plugin) guardAgain(ctx context.Context, o client.Object) error {
	if !isGuarded(o) {
		return nil
	}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"`+allowDelete+`":null}}}`))
	if err := client.IgnoreNotFound(p.client.Patch(context.WithoutCancel(ctx), o, patch)); err != nil {
		return fmt.Errorf("take the annotation %s from %s again: %w", allowDelete, describe(o), err)
	}
	return nil
}

// isGuarded says whether the API server refuses to delete the object without the annotation.
func isGuarded(o client.Object) bool {
	switch o.(type) {
	case *berth.LocalVolume, *berth.LocalSnapshot:
		return true
	}
	return false
}

// describe is the object as kubectl names it.
func describe(o client.Object) string {
	switch o.(type) {
	case *berth.LocalVolume:
		return "localvolume/" + o.GetName()
	case *berth.LocalSnapshot:
		return "localsnapshot/" + o.GetName()
	case *berth.Pool:
		return "pool/" + o.GetName()
	case *berth.BlockDevice:
		return "blockdevice/" + o.GetName()
	}
	return "configmap/" + o.GetName()
}
