// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/tests/testbed/pki"
)

// Node is a node of the cluster.
type Node struct {
	Name string
	// Number is from 1 to 9 and decides the addresses.
	Number int
}

// Seed is the path of the node's seed: a tar archive that the node unpacks over
// its root when it starts, so that nothing of a cluster is in the shared image.
func (f Files) Seed(node string) string { return filepath.Join(string(f), node+".seed.tar") }

// kubeletConfig is every node's. There is no registry, so images are never
// collected; what is killed again and again is started again at once; swap belongs
// to others and is not turned on; nobody answers at the address of the DNS service,
// which only keeps kubelet from complaining. Nothing is evicted: to see every ten seconds
// what each pod has costs a tenth of all that kubelet does on an emulated processor.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
clusterDNS: ["10.96.0.10"]
failSwapOn: false
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
resolvConf: ""
`

// proxyConfig is every node's. nftables mode starts one command per change.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: ` + PodNetwork + `
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.conf}
conntrack: {maxPerCore: 0}
metricsBindAddress: 0.0.0.0:10249
`

// cniConfig gives each pod a pair of interfaces and routes. Nothing is
// masqueraded: every node and the control plane have routes to all pods.
const cniConfig = `{"cniVersion": "1.0.0", "name": "wire", "plugins": [{"type": "wire", "network": %q}]}
`

// seed makes the node's seed.
func (n Node) seed(ca *pki.Authority, all []Node) ([]byte, error) {
	address := NodeAddress(n.Number)
	kubelet, err := ca.Client("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return nil, err
	}
	serving, err := ca.Server(n.Name, n.Name, address)
	if err != nil {
		return nil, err
	}
	proxy, err := ca.Client("system:kube-proxy")
	if err != nil {
		return nil, err
	}
	var routes []string
	for _, other := range all {
		if other.Number != n.Number {
			routes = append(routes, NodePodNetwork(other.Number)+"="+NodeAddress(other.Number))
		}
	}
	id := n.uuid()
	files := []struct {
		name, content string
		mode          int64
	}{
		{"etc/hostname", n.Name + "\n", 0o644},
		{"etc/hosts", fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", address, n.Name), 0o644},
		{"etc/nvme/hostid", id + "\n", 0o644},
		{"etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:" + id + "\n", 0o644},
		{"etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.2024-01.dev.berth.testbed:" + n.Name + "\n", 0o600},
		{"etc/kubernetes/node.env", fmt.Sprintf("NODE=%s\nADDRESS=%s\nGATEWAY=%s\nPOD_ROUTES=%q\n", n.Name, address, ServerAddress, strings.Join(routes, " ")), 0o644},
		{"etc/kubernetes/ca.crt", string(ca.Cert), 0o644},
		{"etc/kubernetes/kubelet.yaml", kubeletConfig, 0o644},
		{"etc/kubernetes/kubelet.conf", string(kubeconfig("node", ca.Cert, kubelet)), 0o600},
		{"etc/kubernetes/kubelet.crt", string(serving.Cert), 0o644},
		{"etc/kubernetes/kubelet.key", string(serving.Key), 0o600},
		{"etc/kubernetes/kube-proxy.yaml", proxyConfig, 0o644},
		{"etc/kubernetes/kube-proxy.conf", string(kubeconfig("kube-proxy", ca.Cert, proxy)), 0o600},
		{"etc/cni/net.d/10-wire.conflist", fmt.Sprintf(cniConfig, strings.TrimSuffix(NodePodNetwork(n.Number), ".0/24")), 0o644},
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, file := range files {
		if err := writer.WriteHeader(&tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.content)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := writer.Write([]byte(file.content)); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// uuid is the node's identity; it is the same every time the node starts.
func (n Node) uuid() string {
	return uuid.NewHash(sha256.New(), uuid.NameSpaceDNS, []byte(n.Name+".testbed.berth.dev"), 5).String()
}

// MachineID is the node's machine-id(5).
func (n Node) MachineID() string { return strings.ReplaceAll(n.uuid(), "-", "") }
