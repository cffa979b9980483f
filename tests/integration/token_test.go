// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"path/filepath"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// apply creates the objects of files of deploy/base that are not there yet.
func apply(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		objects, err := readManifests(filepath.Join(deploy, "base", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range objects {
			if err := server.admin.Create(t.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatalf("create %s %s: %v", object.GetKind(), object.GetName(), err)
			}
		}
	}
}

// agentPod is the name of the agent's pod on a node.
func agentPod(node string) string { return "berth-node-agent-" + node }

// agentConfig acts as the agent of a node does: with a token that the apiserver has
// issued for the agent's pod there, under the rights of deploy/base, and with no others.
func agentConfig(t *testing.T, node string) *rest.Config {
	t.Helper()
	apply(t, "serviceaccounts.yaml", "rbac/node-agent.yaml", "rbac/provisioner.yaml", "rbac/csi-resizer.yaml", "rbac/bindings.yaml")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: agentPod(node)},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "berth-node-agent",
			Containers: []corev1.Container{{Name: "node-agent", Image: "none"}},
		},
	}
	for _, object := range []client.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, pod} {
		switch err := server.admin.Create(t.Context(), object); {
		case err == nil:
			now := client.GracePeriodSeconds(0)
			t.Cleanup(func() { _ = server.admin.Delete(context.Background(), object, now) })
		case apierrors.IsAlreadyExists(err):
			if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatal(err)
		}
	}
	seconds := int64(3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	token, err := kubernetes.NewForConfigOrDie(server.config).CoreV1().ServiceAccounts(namespace).
		CreateToken(t.Context(), "berth-node-agent", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("issue a token for %s: %v", pod.Name, err)
	}
	config := rest.AnonymousClientConfig(server.config)
	config.BearerToken = token.Status.Token
	return config
}

// agentOf is a client with the rights of the agent of a node.
func agentOf(t *testing.T, node string) client.Client {
	t.Helper()
	c, err := client.New(agentConfig(t, node), client.Options{Scheme: server.scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
