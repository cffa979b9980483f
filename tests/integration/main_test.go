// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package integration tests against a real apiserver and etcd what only they
// decide: the validation rules in the CustomResourceDefinitions, the admission
// policies, and that every manifest of deploy/ is accepted as it is.
//
// `make integration` builds both and sets KUBEBUILDER_ASSETS.
package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const namespace = "berth-system"

// deploy is the folder of the manifests.
var deploy = filepath.Join("..", "..", "deploy")

var server struct {
	config *rest.Config
	scheme *runtime.Scheme
	admin  client.Client
	// audit is the file in which the apiserver writes down who asked for what.
	audit string
	// etcd is the URL of its etcd.
	etcd string
}

func TestMain(m *testing.M) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		fmt.Println("skipped: no apiserver; make integration builds one")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	environment := &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(deploy, "crds")},
		ErrorIfCRDPathMissing: true,
	}
	logs, err := os.MkdirTemp("", "berth-integration")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the apiserver's log:", err)
		return 1
	}
	defer os.RemoveAll(logs)
	if err := auditInto(environment.ControlPlane.GetAPIServer(), logs); err != nil {
		fmt.Fprintln(os.Stderr, "set the apiserver's log up:", err)
		return 1
	}
	config, err := environment.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the apiserver:", err)
		return 1
	}
	defer func() {
		if err := environment.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the apiserver:", err)
		}
	}()
	server.etcd = environment.ControlPlane.Etcd.URL.String()
	if err := prepare(config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare makes the clients and applies the admission policies.
func prepare(config *rest.Config) error {
	server.config, server.scheme = config, runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(server.scheme); err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(server.scheme); err != nil {
		return err
	}
	var err error
	if server.admin, err = client.New(config, client.Options{Scheme: server.scheme}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, file := range []string{"namespace.yaml", "admission.yaml"} {
		objects, err := readManifests(filepath.Join(deploy, "base", file))
		if err != nil {
			return err
		}
		for _, object := range objects {
			if err := server.admin.Create(ctx, object); err != nil {
				return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
	}
	return awaitPolicies(ctx)
}

// as is a client of somebody else; node, where not empty, is the node that the
// token of a service account is bound to.
func as(t *testing.T, user, node string) client.Client {
	t.Helper()
	config := rest.CopyConfig(server.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
	if node != "" {
		config.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	c, err := client.New(config, client.Options{Scheme: server.scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	provisioner = "system:serviceaccount:" + namespace + ":berth-provisioner"
	nodeAgent   = "system:serviceaccount:" + namespace + ":berth-node-agent"
)

// awaitPolicies waits until the apiserver has compiled the policies, which it
// does a moment after they are made: until an agent without a node is refused.
func awaitPolicies(ctx context.Context) error {
	config := rest.CopyConfig(server.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: nodeAgent, Groups: []string{"system:masters"}}
	agent, err := client.New(config, client.Options{Scheme: server.scheme})
	if err != nil {
		return err
	}
	return wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		return agent.Create(ctx, blockDevice("bd-probe", "node1"), client.DryRunAll) != nil, nil
	})
}

// readManifests reads the objects of a file.
func readManifests(path string) ([]*unstructured.Unstructured, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	objects, err := decodeManifests(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return objects, nil
}

func decodeManifests(content io.Reader) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(content))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, err
		}
		if object.Object != nil { // a document of comments only
			objects = append(objects, object)
		}
	}
}
