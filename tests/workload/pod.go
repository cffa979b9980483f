// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Where a pod's claims are found inside it.
const (
	// MountDirectory holds one directory per filesystem claim, named like it.
	MountDirectory = "/data"
	// DeviceDirectory holds one device per block claim, named like it.
	DeviceDirectory = "/dev/claims"
)

// Pod is a pod to make: one container that runs a shell script and ends, or
// sleeps until it is deleted.
type Pod struct {
	Name string
	// Claims that are mounted under MountDirectory.
	Claims []string
	// Devices are block claims, shown under DeviceDirectory.
	Devices []string
	// Script for /bin/sh. What it writes to /dev/termination-log is returned by
	// RunPod. Empty: the pod sleeps.
	Script string
	// Node, where set, is the only node the pod may run on.
	Node string
	// PreferredNode is where the scheduler puts the pod if it can.
	PreferredNode string
	// FSGroup, where not 0, is set in the pod's security context.
	FSGroup int64
	// ReadOnly mounts the claims read-only.
	ReadOnly bool
	// HostPaths are directories of the node that the pod sees, to read, by where it
	// sees them.
	HostPaths map[string]string
}

// Object is the pod as Kubernetes takes it.
func (p Pod) Object(namespace, image string) *corev1.Pod {
	script := p.Script
	if script == "" {
		script = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"
	}
	grace := int64(1)
	container := corev1.Container{
		Name:            "main",
		Image:           image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{"/bin/sh", "-c", script},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: namespace},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: &grace,
			Affinity:                      p.affinity(),
		},
	}
	if p.FSGroup != 0 {
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &p.FSGroup}
	}
	for _, claim := range append(append([]string{}, p.Claims...), p.Devices...) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: claim,
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: claim, ReadOnly: p.ReadOnly,
			}},
		})
	}
	for _, claim := range p.Claims {
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{
			Name: claim, MountPath: MountDirectory + "/" + claim, ReadOnly: p.ReadOnly,
		})
	}
	for _, claim := range p.Devices {
		container.VolumeDevices = append(container.VolumeDevices, corev1.VolumeDevice{
			Name: claim, DevicePath: DeviceDirectory + "/" + claim,
		})
	}
	for i, path := range slices.Sorted(maps.Keys(p.HostPaths)) {
		name := fmt.Sprintf("host-%d", i)
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: p.HostPaths[path]}},
		})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: true})
	}
	pod.Spec.Containers = []corev1.Container{container}
	return pod
}

func (p Pod) affinity() *corev1.Affinity {
	term := func(node string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node},
		}}}
	}
	affinity := &corev1.NodeAffinity{}
	if p.Node != "" {
		affinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term(p.Node)}}
	}
	if p.PreferredNode != "" {
		affinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.PreferredSchedulingTerm{{Weight: 100, Preference: term(p.PreferredNode)}}
	}
	if p.Node == "" && p.PreferredNode == "" {
		return nil
	}
	return &corev1.Affinity{NodeAffinity: affinity}
}

// CreatePod makes a pod.
func (s *Space) CreatePod(ctx context.Context, pod Pod) (*corev1.Pod, error) {
	object := pod.Object(s.Namespace, s.Image)
	if err := s.Client.Create(ctx, object); err != nil {
		return nil, fmt.Errorf("create pod %s/%s: %w", s.Namespace, pod.Name, err)
	}
	return object, nil
}

// AwaitPod waits until a pod has one of the phases. A pod that ends in another
// final phase, or is gone, is an error that says what its container said.
func (s *Space) AwaitPod(ctx context.Context, name string, phases ...corev1.PodPhase) (*corev1.Pod, error) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace}}
	err := s.Await(ctx, pod, func(object client.Object, gone bool) (bool, error) {
		if gone {
			return false, fmt.Errorf("pod %s/%s is gone", s.Namespace, name)
		}
		seen := object.(*corev1.Pod)
		if slices.Contains(phases, seen.Status.Phase) {
			return true, nil
		}
		switch seen.Status.Phase {
		case corev1.PodFailed, corev1.PodSucceeded:
			return false, fmt.Errorf("pod %s/%s is %s: %s", s.Namespace, name, seen.Status.Phase, TerminationMessage(seen))
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	return pod, nil
}

// AwaitPodScheduled waits until a pod is bound to a node.
func (s *Space) AwaitPodScheduled(ctx context.Context, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace}}
	err := s.Await(ctx, pod, func(object client.Object, gone bool) (bool, error) {
		if gone {
			return false, fmt.Errorf("pod %s/%s is gone", s.Namespace, name)
		}
		return object.(*corev1.Pod).Spec.NodeName != "", nil
	})
	if err != nil {
		return nil, err
	}
	return pod, nil
}

// RunPod makes a pod, waits until its script has ended well, deletes the pod and
// returns what the script wrote to /dev/termination-log and the node it ran on.
func (s *Space) RunPod(ctx context.Context, pod Pod) (message, node string, err error) {
	object, err := s.CreatePod(ctx, pod)
	if err != nil {
		return "", "", err
	}
	ended, err := s.AwaitPod(ctx, pod.Name, corev1.PodSucceeded)
	if err != nil {
		return "", "", err
	}
	if err := s.Delete(ctx, object); err != nil {
		return "", "", err
	}
	return TerminationMessage(ended), ended.Spec.NodeName, nil
}

// DeletePod deletes a pod and waits until it is gone.
func (s *Space) DeletePod(ctx context.Context, name string) error {
	return s.Delete(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace}})
}

// TerminationMessage is what the pod's container left in /dev/termination-log.
func TerminationMessage(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		if status.State.Terminated != nil {
			return status.State.Terminated.Message
		}
	}
	return ""
}
