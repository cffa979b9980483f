// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net"
	"path/filepath"
)

// Network of a test cluster. 192.0.2.0/24 is TEST-NET-1 (RFC 5737): it is
// nobody's, and it exists only in the cluster's network namespace.
const (
	ServerAddress  = "192.0.2.1"
	ServerPort     = "6443"
	NodeNetwork    = "192.0.2.0/24"
	ServiceNetwork = "10.96.0.0/16"
	PodNetwork     = "10.244.0.0/16"
	// serviceAddress is the address of the service "kubernetes", the first of
	// the service network.
	serviceAddress = "10.96.0.1"
)

// NodeAddress is the address of node n.
func NodeAddress(n int) string { return fmt.Sprintf("192.0.2.%d", 10+n) }

// NodePodNetwork is the network of the pods on node n.
func NodePodNetwork(n int) string { return fmt.Sprintf("10.244.%d.0/24", n) }

// ServerURL is where clients reach the API server.
func ServerURL() string { return "https://" + net.JoinHostPort(ServerAddress, ServerPort) }

// Component is a part of the control plane, run on this machine.
type Component struct {
	// Name is that of its program, its log and its pid file.
	Name string
	Argv []string
	// HealthURL answers 200 when it is ready; it is asked with the
	// administrator's certificate.
	HealthURL string
}

// etcdURL is plain because etcd listens on the namespace's loopback only.
const etcdURL = "http://127.0.0.1:2379"

// EtcdDir is where etcd keeps its state, in the folder that Components was given.
func EtcdDir(data string) string { return filepath.Join(data, "etcd") }

// Components are the parts of the control plane in the order of their start.
// programs maps a name to its file; files is where Write put certificates and
// kubeconfigs; data is where etcd keeps its state.
func Components(programs map[string]string, files Files, data string) []Component {
	crt, key := files.cert, files.key
	return []Component{
		{
			Name: "etcd", HealthURL: etcdURL + "/readyz",
			Argv: []string{
				programs["etcd"], "--name=testbed", "--data-dir=" + EtcdDir(data),
				"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
				"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
				"--initial-cluster=testbed=http://127.0.0.1:2380",
				"--unsafe-no-fsync", "--log-level=warn",
			},
		},
		{
			Name: "kube-apiserver", HealthURL: ServerURL() + "/readyz",
			Argv: []string{
				programs["kube-apiserver"], "--etcd-servers=" + etcdURL,
				"--advertise-address=" + ServerAddress, "--secure-port=" + ServerPort, "--service-cluster-ip-range=" + ServiceNetwork,
				"--tls-cert-file=" + crt("kube-apiserver"), "--tls-private-key-file=" + key("kube-apiserver"),
				"--client-ca-file=" + crt("ca"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
				"--kubelet-certificate-authority=" + crt("ca"), "--kubelet-client-certificate=" + crt("kubelet-client"),
				"--kubelet-client-key=" + key("kubelet-client"), "--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + crt("service-account"),
				"--service-account-signing-key-file=" + key("service-account"),
				"--requestheader-client-ca-file=" + crt("front-proxy-ca"), "--requestheader-allowed-names=front-proxy-client",
				"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-",
				"--proxy-client-cert-file=" + crt("front-proxy-client"), "--proxy-client-key-file=" + key("front-proxy-client"),
				// Webhooks and aggregated APIs are reached at their pods:
				// services have no address outside the nodes.
				"--enable-aggregator-routing=true", "--allow-privileged=true",
			},
		},
		{
			Name: "kube-controller-manager", HealthURL: "https://127.0.0.1:10257/healthz",
			Argv: []string{
				programs["kube-controller-manager"], "--bind-address=127.0.0.1",
				"--kubeconfig=" + files.Kubeconfig("kube-controller-manager"), "--authentication-kubeconfig=" + files.Kubeconfig("kube-controller-manager"),
				"--authorization-kubeconfig=" + files.Kubeconfig("kube-controller-manager"), "--leader-elect=false",
				"--tls-cert-file=" + crt("control-plane"), "--tls-private-key-file=" + key("control-plane"),
				"--service-account-private-key-file=" + key("service-account"), "--root-ca-file=" + crt("ca"),
				"--cluster-signing-cert-file=" + crt("ca"), "--cluster-signing-key-file=" + key("ca"),
				"--use-service-account-credentials=true",
			},
		},
		{
			Name: "kube-scheduler", HealthURL: "https://127.0.0.1:10259/healthz",
			Argv: []string{
				programs["kube-scheduler"], "--bind-address=127.0.0.1",
				"--kubeconfig=" + files.Kubeconfig("kube-scheduler"), "--authentication-kubeconfig=" + files.Kubeconfig("kube-scheduler"),
				"--authorization-kubeconfig=" + files.Kubeconfig("kube-scheduler"), "--leader-elect=false",
				"--tls-cert-file=" + crt("control-plane"), "--tls-private-key-file=" + key("control-plane"),
			},
		},
	}
}

// SnapshotController is started when its CRDs are there.
func SnapshotController(programs map[string]string, files Files) Component {
	return Component{
		Name: "snapshot-controller", HealthURL: "http://127.0.0.1:8281/metrics",
		Argv: []string{
			programs["snapshot-controller"], "--kubeconfig=" + files.Kubeconfig("snapshot-controller"),
			"--leader-election=false", "--http-endpoint=127.0.0.1:8281",
		},
	}
}
