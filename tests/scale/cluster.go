// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/scale/hollow"
)

const (
	namespace = "berth-system"
	// claims is the namespace of the claims, and class their StorageClass.
	claims = "berth-scale"
	class  = "berth-scale"
	// volumeBytes is small: what is promised is not written.
	volumeBytes = 1 << 20
	// writers is how many requests the benchmark itself has under way.
	writers = 16
)

// cluster is what the benchmark does by the rights of an administrator.
type cluster struct {
	config *rest.Config
	client client.WithWatch
	typed  *kubernetes.Clientset
	own    *ownRequests
}

func newCluster(admin *rest.Config) (*cluster, error) {
	c := &cluster{config: rest.CopyConfig(admin), own: &ownRequests{counts: map[string]int{}}}
	c.config.Wrap(c.own.wrap)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, berth.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	var err error
	if c.client, err = client.NewWithWatch(c.config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if c.typed, err = kubernetes.NewForConfig(c.config); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

// ownRequests counts what the benchmark itself asks for, by verb and resource.
type ownRequests struct {
	mu     sync.Mutex
	counts map[string]int
}

func (o *ownRequests) wrap(next http.RoundTripper) http.RoundTripper {
	return trips(func(req *http.Request) (*http.Response, error) {
		verb, resource := hollow.Asked(req)
		o.mu.Lock()
		o.counts[verb+" "+resource]++
		o.mu.Unlock()
		return next.RoundTrip(req)
	})
}

func (o *ownRequests) total() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	sum := 0
	for _, n := range o.counts {
		sum += n
	}
	return sum
}

type trips func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f trips) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// install applies the one-file install, but for what needs nodes with containers.
func (c *cluster) install(ctx context.Context, manifest string) error {
	objects, err := readManifests(manifest)
	if err != nil {
		return err
	}
	for _, object := range objects {
		switch object.GetKind() {
		case "DaemonSet", "Deployment", "NetworkPolicy":
			continue
		}
		// The kinds of Berth are known a moment after their definitions.
		err := until(ctx, "create "+object.GetKind()+" "+object.GetName(), time.Minute, nil, func() (bool, error) {
			err := client.IgnoreAlreadyExists(c.client.Create(ctx, object.DeepCopy()))
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the class, the pools and the namespace of the claims. pool is the directory of
// the pool on every host.
func (c *cluster) prepare(ctx context.Context, pool string) error {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: claims}},
		&storagev1.StorageClass{
			ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: berth.DriverName, VolumeBindingMode: &wait,
			Parameters: map[string]string{"mode": "hostpath", "pool": class},
		},
		&berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: berth.PoolSetSpec{
			Kind: berth.PoolHostpath, Hostpath: &berth.HostpathPool{Path: pool}, NodeSelector: map[string]string{nodeLabel: "true"},
		}},
	} {
		err := until(ctx, "create "+object.GetName(), time.Minute, nil, func() (bool, error) {
			err := client.IgnoreAlreadyExists(c.client.Create(ctx, object))
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodeLabel is on the nodes of the benchmark.
const nodeLabel = "scale.berth.dev/node"

// nodeName of the i-th node.
func nodeName(i int) string { return fmt.Sprintf("scale-%04d", i) }

// podName of the agent there.
func podName(node string) string { return "berth-node-agent-" + node }

// join makes the Node, CSINode and agent's pod of n nodes, and a token for each agent, which
// is bound to its pod as kubelet has it. The policies take the node's name from that.
func (c *cluster) join(ctx context.Context, n int) ([]hollow.Node, error) {
	nodes := make([]hollow.Node, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range nodes {
		group.Go(func() error {
			name := nodeName(i)
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
				Name:   name,
				Labels: map[string]string{nodeLabel: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
			}}
			if err := c.client.Create(ctx, node); err != nil {
				return fmt.Errorf("create Node %s: %w", name, err)
			}
			csiNode := &storagev1.CSINode{
				ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}}},
				Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: berth.DriverName, NodeID: name, TopologyKeys: []string{berth.TopologyKeyNode}}}},
			}
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName(name), Labels: map[string]string{nodeLabel: "true"}},
				Spec: corev1.PodSpec{
					NodeName: name, ServiceAccountName: "berth-node-agent",
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, // as the DaemonSet has
					Containers:  []corev1.Container{{Name: "node-agent", Image: "none"}},
				},
			}
			for _, object := range []client.Object{csiNode, pod} {
				if err := c.client.Create(ctx, object); err != nil {
					return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
				}
			}
			token, err := c.token(ctx, "berth-node-agent", &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
			nodes[i] = hollow.Node{Name: name, Pod: pod.Name, Token: token}
			return err
		})
	}
	return nodes, group.Wait()
}

// token of a service account, which outlasts the benchmark.
func (c *cluster) token(ctx context.Context, account string, bound *authenticationv1.BoundObjectReference) (string, error) {
	seconds := int64(24 * 3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound}}
	answer, err := c.typed.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("issue a token for %s: %w", account, err)
	}
	return answer.Status.Token, nil
}

// again does something until it succeeds, for a minute: an apiserver that has more to do than it
// can refuses, or answers too late.
func again(ctx context.Context, what string, do func() error) error {
	return until(ctx, what, time.Minute, nil, func() (bool, error) {
		err := do()
		if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return true, err
		}
		return err == nil, err
	})
}

// beat does what kubelets do of which agents hear: each reports its node's status every five
// minutes when nothing changes (nodeStatusReportFrequency). It returns with the context.
func (c *cluster) beat(ctx context.Context, nodes int) error {
	const every = 5 * time.Minute
	tick := time.NewTicker(every / time.Duration(nodes))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i % nodes)}}
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"kubelet is posting ready status","lastHeartbeatTime":%q}]}}`,
			time.Now().UTC().Format(time.RFC3339))
		err := again(ctx, "report as the kubelet of "+node.Name, func() error {
			return c.client.Status().Patch(ctx, node, client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
		})
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// readManifests reads the objects of a file.
func readManifests(path string) ([]*unstructured.Unstructured, error) {
	content, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if object.Object != nil { // a document of comments only
			objects = append(objects, object)
		}
	}
}
