// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ofKind reads the objects of a kind from a file of deploy/base.
func ofKind[T any](t *testing.T, file, kind string) []*T {
	t.Helper()
	objects, err := readManifests(filepath.Join(deploy, "base", file))
	if err != nil {
		t.Fatal(err)
	}
	var found []*T
	for _, object := range objects {
		if object.GetKind() != kind {
			continue
		}
		typed := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, typed); err != nil {
			t.Fatal(err)
		}
		found = append(found, typed)
	}
	if len(found) == 0 {
		t.Fatalf("%s has no %s", file, kind)
	}
	return found
}

// The apiserver's own Pod Security judges: the provisioner and its sidecar need nothing
// that the strictest level forbids, the agent's needs are those that are written down.
func TestPodSecurity(t *testing.T) {
	t.Parallel()
	strict := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "restricted-of-a-test", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := server.admin.Create(t.Context(), strict); err != nil {
		t.Fatal(err)
	}
	judge := func(namespace string, template corev1.PodTemplateSpec) error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "judged"}, Spec: template.Spec}
		return server.admin.Create(t.Context(), pod, client.DryRunAll)
	}
	if err := judge(strict.Name, ofKind[appsv1.Deployment](t, "provisioner.yaml", "Deployment")[0].Spec.Template); err != nil {
		t.Errorf("the provisioner at the level restricted: %v", err)
	}
	agent := ofKind[appsv1.DaemonSet](t, "node-agent.yaml", "DaemonSet")[0].Spec.Template
	err := judge(strict.Name, agent)
	if err == nil {
		t.Fatal("the agent is allowed at the level restricted: docs/explanation/security.md says more than it needs")
	}
	_, violations, _ := strings.Cut(err.Error(), "violates PodSecurity")
	for _, known := range []string{
		"host namespaces (hostPID=true)", "privileged (", "allowPrivilegeEscalation != false", "unrestricted capabilities", "restricted volume types (",
		"runAsNonRoot != true", "seccompProfile (",
	} {
		if !strings.Contains(violations, known) {
			t.Errorf("%q is not among %s", known, violations)
		}
	}
	if strings.Contains(violations, "hostNetwork") || strings.Contains(violations, "hostIPC") || strings.Contains(violations, "hostPort") {
		t.Errorf("the agent shares more with its host than docs/explanation/security.md says: %s", violations)
	}
	if err := judge(namespace, agent); err != nil {
		t.Errorf("the agent in its own namespace: %v", err)
	}
}

// Every pod of Berth has a policy, and that lets in what its containers serve and no more.
func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	templates := map[string]corev1.PodTemplateSpec{
		"berth-provisioner": ofKind[appsv1.Deployment](t, "provisioner.yaml", "Deployment")[0].Spec.Template,
		"berth-node-agent":  ofKind[appsv1.DaemonSet](t, "node-agent.yaml", "DaemonSet")[0].Spec.Template,
	}
	for _, policy := range ofKind[networkingv1.NetworkPolicy](t, "networkpolicy.yaml", "NetworkPolicy") {
		template, known := templates[policy.Name]
		if !known {
			t.Fatalf("%s is about nothing", policy.Name)
		}
		delete(templates, policy.Name)
		if selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector); err != nil || selector.Empty() || !selector.Matches(labels.Set(template.Labels)) {
			t.Errorf("%s selects %s (%v), its pods are %v", policy.Name, selector, err, template.Labels)
		}
		var serves, lets []int32
		for _, container := range template.Spec.Containers {
			for _, port := range container.Ports {
				serves = append(serves, port.ContainerPort)
			}
		}
		for _, rule := range policy.Spec.Ingress {
			if len(rule.Ports) == 0 {
				t.Errorf("%s lets everything in", policy.Name)
			}
			for _, port := range rule.Ports {
				lets = append(lets, port.Port.IntVal)
			}
		}
		if !slices.Equal(serves, lets) {
			t.Errorf("%s lets in %v, the pod serves %v", policy.Name, lets, serves)
		}
		if !slices.Equal(policy.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}) {
			t.Errorf("%s is about %v", policy.Name, policy.Spec.PolicyTypes)
		}
		if len(policy.Spec.Egress) != 1 || len(policy.Spec.Egress[0].Ports) == 0 {
			t.Errorf("%s lets out %+v", policy.Name, policy.Spec.Egress)
		}
	}
	for name := range templates {
		t.Errorf("%s has no policy", name)
	}
}
