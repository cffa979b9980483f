// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// user is who a client certificate says it is.
func user(t *testing.T, certificate []byte) (name string, groups []string) {
	t.Helper()
	block, _ := pem.Decode(certificate)
	if block == nil {
		t.Fatalf("no certificate in %q", certificate)
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Subject.CommonName, parsed.Subject.Organization
}

// kubeconfigUser is who a kubeconfig authenticates as; it checks that the key
// fits the certificate.
func kubeconfigUser(t *testing.T, content []byte) (name string, groups []string) {
	t.Helper()
	var config struct {
		Clusters []struct {
			Cluster struct{ Server string }
		}
		Users []struct {
			User struct {
				Certificate string `json:"client-certificate-data"`
				Key         string `json:"client-key-data"`
			}
		}
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Users) != 1 || len(config.Clusters) != 1 || config.Clusters[0].Cluster.Server != "https://192.0.2.1:6443" {
		t.Fatalf("kubeconfig = %+v", config)
	}
	certificate, err := base64.StdEncoding.DecodeString(config.Users[0].User.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(config.Users[0].User.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		t.Error(err)
	}
	return user(t, certificate)
}

func seedFiles(t *testing.T, path string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(body)
	}
}

func TestEveryClientHasItsOwnIdentity(t *testing.T) {
	t.Parallel()
	files := Files(filepath.Join(t.TempDir(), "pki"))
	nodes := []Node{{Name: "node1", Number: 1}, {Name: "node2", Number: 2}}
	if err := files.Write(nodes); err != nil {
		t.Fatal(err)
	}
	caKey, err := os.ReadFile(files.key("ca"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"admin":                   {"testbed-admin", "system:masters"},
		"kube-controller-manager": {"system:kube-controller-manager"},
		"kube-scheduler":          {"system:kube-scheduler"},
		"snapshot-controller":     {"snapshot-controller"},
	} {
		content, err := os.ReadFile(files.Kubeconfig(name))
		if err != nil {
			t.Fatal(err)
		}
		user, groups := kubeconfigUser(t, content)
		if got := append([]string{user}, groups...); !slices.Equal(got, want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, node := range nodes {
		seed := seedFiles(t, files.Seed(node.Name))
		if user, groups := kubeconfigUser(t, []byte(seed["etc/kubernetes/kubelet.conf"])); user != "system:node:"+node.Name || !slices.Equal(groups, []string{"system:nodes"}) {
			t.Errorf("%s is %s of %v", node.Name, user, groups)
		}
		if user, _ := kubeconfigUser(t, []byte(seed["etc/kubernetes/kube-proxy.conf"])); user != "system:kube-proxy" {
			t.Errorf("kube-proxy of %s is %s", node.Name, user)
		}
		if _, err := tls.X509KeyPair([]byte(seed["etc/kubernetes/kubelet.crt"]), []byte(seed["etc/kubernetes/kubelet.key"])); err != nil {
			t.Errorf("serving certificate of %s: %v", node.Name, err)
		}
		for name, content := range seed {
			if strings.Contains(content, strings.TrimSpace(string(caKey))) {
				t.Errorf("%s of %s holds the authority's key", name, node.Name)
			}
		}
	}
	first, second := seedFiles(t, files.Seed("node1")), seedFiles(t, files.Seed("node2"))
	for _, own := range []string{"etc/nvme/hostid", "etc/nvme/hostnqn", "etc/iscsi/initiatorname.iscsi", "etc/hostname", "etc/cni/net.d/10-wire.conflist"} {
		if first[own] == "" || first[own] == second[own] {
			t.Errorf("%s of both nodes is %q", own, first[own])
		}
	}
	if !strings.Contains(first["etc/kubernetes/node.env"], `POD_ROUTES="10.244.2.0/24=192.0.2.12"`) {
		t.Errorf("node1's environment: %s", first["etc/kubernetes/node.env"])
	}
	if nodes[0].MachineID() == nodes[1].MachineID() || len(nodes[0].MachineID()) != 32 {
		t.Errorf("machine IDs %s and %s", nodes[0].MachineID(), nodes[1].MachineID())
	}
}

// The control plane must not need a file that Write does not make.
func TestComponentsUseTheFilesThatAreWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pki")
	files := Files(dir)
	if err := files.Write([]Node{{Name: "node1", Number: 1}}); err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, program := range Programs {
		programs[program.Name] = "/bin/" + program.Name
	}
	for _, component := range append(Components(programs, files, "/data"), SnapshotController(programs, files)) {
		if component.Argv[0] != "/bin/"+component.Name {
			t.Errorf("%s runs %s", component.Name, component.Argv[0])
		}
		for _, argument := range component.Argv[1:] {
			_, value, _ := strings.Cut(argument, "=")
			if !strings.HasPrefix(value, dir) {
				continue
			}
			if _, err := os.Stat(value); err != nil {
				t.Errorf("%s: %v", component.Name, err)
			}
		}
	}
}

func TestBootstrapIsYAML(t *testing.T) {
	t.Parallel()
	documents := strings.Split(string(Bootstrap), "\n---\n")
	if len(documents) < 3 {
		t.Fatalf("%d documents", len(documents))
	}
	bound := false
	for _, document := range documents {
		var object struct {
			APIVersion, Kind string
			Subjects         []struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil || object.Kind == "" {
			t.Errorf("%v: %s", err, document)
		}
		for _, subject := range object.Subjects {
			bound = bound || subject.Name == KubeletClientUser
		}
	}
	if !bound {
		t.Errorf("the API server's user at the kubelets, %s, has no rights there", KubeletClientUser)
	}
}

func TestProgramKeysChangeWithWhatIsPinned(t *testing.T) {
	t.Parallel()
	repository := t.TempDir()
	program := Programs[0]
	dir := filepath.Join(repository, ModulesDir, program.module)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := program.Key(repository); err == nil {
		t.Error("a key without a go.mod")
	}
	write("go.mod", "module x\n")
	write("go.sum", "")
	first, err := program.Key(repository)
	if err != nil {
		t.Fatal(err)
	}
	write("go.sum", "k8s.io/kubernetes v1.37.2 h1:=\n")
	second, err := program.Key(repository)
	if err != nil {
		t.Fatal(err)
	}
	if first.String() == second.String() {
		t.Error("the key does not depend on go.sum")
	}
}

// The versions that are told to users are those that are built.
func TestVersionsArePinned(t *testing.T) {
	t.Parallel()
	for module, requirements := range map[string][]string{
		"kubernetes": {"k8s.io/kubernetes " + Version},
		"sidecars": {
			"github.com/kubernetes-csi/external-resizer/v2 " + ResizerVersion,
			"github.com/kubernetes-csi/external-snapshotter/v8 " + SnapshotterVersion,
			snapshotModule + " " + SnapshotterVersion,
		},
	} {
		content, err := os.ReadFile(filepath.Join("modules", module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for _, requirement := range requirements {
			if !strings.Contains(string(content), requirement+"\n") {
				t.Errorf("modules/%s/go.mod does not require %s", module, requirement)
			}
		}
	}
}

// What the sidecars have in common with the product is of one version, so that it is
// compiled once: compiling Kubernetes' client again for them takes minutes on two cores.
// Where it fails, raise the lower one (go get MODULE@VERSION) and tidy both.
func TestSidecarsShareTheProductsVersions(t *testing.T) {
	t.Parallel()
	product := requirements(t, filepath.Join("..", "..", "..", "go.mod"))
	shared := 0
	for module, version := range requirements(t, filepath.Join("modules", "sidecars", "go.mod")) {
		if ours, ok := product[module]; ok {
			shared++
			if ours != version {
				t.Errorf("%s: the sidecars have %s, the product %s", module, version, ours)
			}
		}
	}
	if shared < 10 {
		t.Errorf("%d modules in common: the files were not read right", shared)
	}
}

// requirements are the modules that a go.mod requires, with their versions.
func requirements(t *testing.T, path string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^(?:require)?\s+(\S+) (v\S+)`).FindAllSubmatch(content, -1) {
		found[string(match[1])] = string(match[2])
	}
	return found
}
