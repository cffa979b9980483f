// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/tests/testbed/pki"
)

// controlPlane is an etcd and an apiserver, which nobody outside of this machine can reach.
type controlPlane struct {
	dir       string
	etcd      *process
	apiserver *process
	admin     *rest.Config
}

// newControlPlane starts both, with their data below the directory.
func newControlPlane(ctx context.Context, assets, dir string) (*controlPlane, error) {
	c := &controlPlane{dir: dir}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	if err := c.certify(ports[2]); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	etcd, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	file := func(name string) string { return filepath.Join(dir, name) }
	c.etcd = &process{name: "etcd", log: file("etcd.log"), argv: []string{
		filepath.Join(assets, "etcd"), "--name=scale", "--data-dir=" + file("etcd"),
		"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=scale=" + peer,
		"--quota-backend-bytes=8589934592", "--unsafe-no-fsync", "--log-level=warn",
	}}
	// Its limits of requests in flight, its priorities and its cache are the defaults.
	c.apiserver = &process{name: "kube-apiserver", log: file("kube-apiserver.log"), argv: []string{
		filepath.Join(assets, "kube-apiserver"), "--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1", "--secure-port=" + ports[2], "--service-cluster-ip-range=10.0.0.0/24",
		"--cert-dir=" + dir, "--tls-cert-file=" + file("server.crt"), "--tls-private-key-file=" + file("server.key"),
		"--client-ca-file=" + file("ca.crt"), "--authorization-mode=Node,RBAC", "--allow-privileged=true",
		// Nobody looks for it in the Endpoints; it takes no address of the loopback for that.
		"--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1",
		// There is no controller that would make the service accounts of namespaces.
		"--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + file("sa.crt"),
		"--service-account-signing-key-file=" + file("sa.key"),
	}}
	if err := c.etcd.start(); err != nil {
		return c, err
	}
	return c, c.startAPIServer(ctx)
}

func (c *controlPlane) certify(port string) error {
	ca, err := pki.NewAuthority("scale")
	if err != nil {
		return err
	}
	server, err := ca.Server("kube-apiserver", "127.0.0.1", "localhost")
	if err != nil {
		return err
	}
	admin, err := ca.Client("scale-admin", "system:masters")
	if err != nil {
		return err
	}
	accounts, err := pki.NewSigningKey()
	if err != nil {
		return err
	}
	for name, pair := range map[string]pki.Pair{"ca": ca.Pair, "server": server, "sa": accounts} {
		if err := pair.Write(filepath.Join(c.dir, name)); err != nil {
			return err
		}
	}
	c.admin = &rest.Config{
		Host: "https://127.0.0.1:" + port, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.Cert, CertData: admin.Cert, KeyData: admin.Key},
	}
	return nil
}

// startAPIServer returns when it is ready.
func (c *controlPlane) startAPIServer(ctx context.Context) error {
	if err := c.apiserver.start(); err != nil {
		return err
	}
	config := rest.CopyConfig(c.admin)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	return until(ctx, "the apiserver is ready", 3*time.Minute, []*process{c.etcd, c.apiserver}, func() (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.admin.Host+"/readyz", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
}

func (c *controlPlane) stop() {
	for _, p := range []*process{c.apiserver, c.etcd} {
		if p != nil {
			p.stop(0) // its data go with the directory
		}
	}
}

func freePorts(n int) ([]string, error) {
	var ports []string
	var listeners []net.Listener
	defer func() { // only when all are known, so that none comes twice
		for _, listener := range listeners {
			_ = listener.Close()
		}
	}()
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, listener)
		address, ok := listener.Addr().(*net.TCPAddr)
		if !ok {
			return nil, fmt.Errorf("listening at %s", listener.Addr())
		}
		ports = append(ports, strconv.Itoa(address.Port))
	}
	return ports, nil
}

// workDir is where everything of one size lies: in memory, where the machine has such a
// place, for it is not the machine's disk that is measured.
func workDir(parent string) (string, error) {
	if parent == "" {
		if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
			parent = "/dev/shm"
		}
	}
	return os.MkdirTemp(parent, "berth-scale-")
}
