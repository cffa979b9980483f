// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/tests/testbed/pki"
)

// Files is the folder of a cluster's certificates and kubeconfigs.
type Files string

func (f Files) cert(name string) string { return filepath.Join(string(f), name+".crt") }
func (f Files) key(name string) string  { return filepath.Join(string(f), name+".key") }

// Kubeconfig is the path of a client's kubeconfig.
func (f Files) Kubeconfig(client string) string {
	return filepath.Join(string(f), client+".kubeconfig")
}

// client is a user of the API with its groups, as RBAC's default roles know it.
type client struct {
	user   string
	groups []string
}

// Admin is the client that may do everything.
const Admin = "admin"

// clients have a certificate and a kubeconfig each.
var clients = map[string]client{
	Admin:                     {"testbed-admin", []string{"system:masters"}},
	"kube-controller-manager": {"system:kube-controller-manager", nil},
	"kube-scheduler":          {"system:kube-scheduler", nil},
	"snapshot-controller":     {"snapshot-controller", nil},
}

// KubeletClientUser is the API server's user at the kubelets.
const KubeletClientUser = "kube-apiserver-kubelet-client"

// Write makes a new cluster's certificates, keys and kubeconfigs in the folder,
// and a seed for each node.
func (f Files) Write(nodes []Node) error {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	ca, err := pki.NewAuthority("testbed-ca")
	if err != nil {
		return err
	}
	frontProxy, err := pki.NewAuthority("testbed-front-proxy-ca")
	if err != nil {
		return err
	}
	pairs := map[string]func() (pki.Pair, error){
		"ca":              func() (pki.Pair, error) { return ca.Pair, nil },
		"front-proxy-ca":  func() (pki.Pair, error) { return frontProxy.Pair, nil },
		"service-account": pki.NewSigningKey,
		"kube-apiserver": func() (pki.Pair, error) {
			return ca.Server("kube-apiserver", ServerAddress, "127.0.0.1", serviceAddress, "localhost",
				"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
		},
		"control-plane":      func() (pki.Pair, error) { return ca.Server("control-plane", "127.0.0.1", "localhost") },
		"kubelet-client":     func() (pki.Pair, error) { return ca.Client(KubeletClientUser) },
		"front-proxy-client": func() (pki.Pair, error) { return frontProxy.Client("front-proxy-client") },
	}
	for name, c := range clients {
		pairs[name] = func() (pki.Pair, error) { return ca.Client(c.user, c.groups...) }
	}
	for name, makePair := range pairs {
		pair, err := makePair()
		if err != nil {
			return err
		}
		if err := pair.Write(filepath.Join(string(f), name)); err != nil {
			return err
		}
		if _, isClient := clients[name]; isClient {
			if err := os.WriteFile(f.Kubeconfig(name), kubeconfig(name, ca.Cert, pair), 0o600); err != nil {
				return err
			}
		}
	}
	for _, node := range nodes {
		seed, err := node.seed(ca, nodes)
		if err != nil {
			return fmt.Errorf("make seed of %s: %w", node.Name, err)
		}
		if err := os.WriteFile(f.Seed(node.Name), seed, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig lets a user reach the API server with its certificate. It holds
// all it needs.
func kubeconfig(user string, ca []byte, pair pki.Pair) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: testbed
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %[3]s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: testbed
  context: {cluster: testbed, user: %[3]s}
current-context: testbed
`, ServerURL(), encode(ca), user, encode(pair.Cert), encode(pair.Key))
}
