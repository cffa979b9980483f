// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kubectl"
)

// forget runs kubectl berth forget-node with a client.
func forget(ctx context.Context, api client.Client, node string) (code int, said string) {
	var out, errs strings.Builder
	code = kubectl.Run(ctx, []string{"forget-node", node, "--confirm", node, "--disks-destroyed"}, kubectl.Streams{Out: &out, Err: &errs},
		func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.Cluster{Client: api}, nil })
	return code, out.String() + errs.String()
}

func forgettable(node string) []client.Object {
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "fast-" + node}, Spec: v1alpha1.PoolSpec{NodeName: node, PoolSetName: "fast", Kind: v1alpha1.PoolLVM},
	}
	objects := []client.Object{localVolume("lv-"+node, node), localSnapshot("snapshot-"+node, node), pool, blockDevice("bd-"+node, node)}
	for _, o := range objects {
		o.SetFinalizers([]string{v1alpha1.AgentFinalizer})
	}
	return append(objects, metadataOf("lvm-metadata."+node+".fast.0123456789"))
}

// An administrator forgets a node past the guards and the finalizers, and nothing of another
// node.
func TestForgetNode(t *testing.T) {
	t.Parallel()
	mine, theirs := forgettable("forgotten"), forgettable("kept")
	for _, o := range append(slices.Clone(mine), theirs...) {
		if err := server.admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	// One whose claim was deleted already waits for its agent.
	waiting := localVolume("lv-waiting", "forgotten")
	waiting.Finalizers = []string{v1alpha1.AgentFinalizer}
	if err := server.admin.Create(t.Context(), waiting); err != nil {
		t.Fatal(err)
	}
	if err := as(t, provisioner, "").Delete(t.Context(), waiting); err != nil {
		t.Fatal(err)
	}
	if code, said := forget(t.Context(), as(t, "admin", ""), "forgotten"); code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	for _, o := range append(mine, waiting) {
		if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s is still there: %v", o, o.GetName(), err)
		}
	}
	for _, o := range theirs {
		if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || o.GetDeletionTimestamp() != nil {
			t.Errorf("%T %s of another node: %v", o, o.GetName(), err)
		}
	}
}

// A node that comes back between two requests keeps its volume, and is never told to wipe it.
func TestForgetNodeThatComesBack(t *testing.T) {
	t.Parallel()
	volume := localVolume("lv-returned", "returned")
	volume.Finalizers = []string{v1alpha1.AgentFinalizer}
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	admin, err := client.NewWithWatch(server.config, client.Options{Scheme: server.scheme})
	if err != nil {
		t.Fatal(err)
	}
	agent := as(t, nodeAgent, "returned")
	meddled := interceptor.NewClient(admin, interceptor.Funcs{
		Delete: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			there := &v1alpha1.LocalVolume{}
			if err := agent.Get(ctx, client.ObjectKeyFromObject(o), there); err != nil {
				t.Error(err)
			}
			there.Finalizers = []string{v1alpha1.AgentFinalizer}
			if err := agent.Update(ctx, there); err != nil {
				t.Error(err)
			}
			return api.Delete(ctx, o, opts...)
		},
	})
	if code, said := forget(t.Context(), meddled, "returned"); code != 1 || !strings.Contains(said, "the node's agent may be back") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(volume), volume); err != nil {
		t.Fatal(err)
	}
	if volume.DeletionTimestamp != nil || !slices.Contains(volume.Finalizers, v1alpha1.AgentFinalizer) || len(volume.Annotations) > 0 {
		t.Errorf("it was left as %+v", volume.ObjectMeta)
	}
}

func TestForgetNodeThatIsReady(t *testing.T) {
	t.Parallel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "alive"}}
	if err := server.admin.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if err := server.admin.Status().Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	volume := localVolume("lv-alive", "alive")
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	if code, said := forget(t.Context(), server.admin, "alive"); code != 1 || !strings.Contains(said, "Node alive is ready") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(volume), volume); err != nil {
		t.Error(err)
	}
}
