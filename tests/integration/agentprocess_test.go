// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// agentProcess is cmd/node-agent on a host of its own: a mount namespace, which outlives
// the process as a host outlives its pods. It acts with a token for its own pod, under the
// rights and policies of deploy/base, and reaches the apiserver through a wire that can be cut.
type agentProcess struct {
	*process
	node string
	// dir is a directory of the host, seen by the test where no volume is mounted.
	dir  string
	host string // the host's root, as the test sees it
	wire *wire
}

// newAgent builds the command and its host. Only root can: it mounts.
func newAgent(t *testing.T, node string) *agentProcess {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the agent mounts volumes")
	}
	dir, err := os.MkdirTemp("/tmp", "agent") // short: paths of sockets are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	host := exec.Command("sleep", "3600")
	host.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := host.Start(); err != nil {
		t.Skip("needs a mount namespace: ", err)
	}
	t.Cleanup(func() {
		_ = host.Process.Kill()
		_ = host.Wait()
	})
	a := &agentProcess{
		// In a namespace for its hostname, which is that of the pod.
		process: &process{t: t, binary: "unshare", socket: filepath.Join(dir, "csi.sock"), http: freeAddress(t)},
		node:    node, dir: dir, host: fmt.Sprintf("/proc/%d/root", host.Process.Pid),
	}
	binary := filepath.Join(dir, "node-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags=grpcnotrace", "-o", binary, "../../cmd/node-agent")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	config := agentConfig(t, node)
	a.wire = newWire(t, strings.Trim(strings.TrimPrefix(config.Host, "https:"), "/"))
	kubeconfig := filepath.Join(dir, "kubeconfig")
	err = clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: "https://" + a.wire.address, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: config.BearerToken}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	a.args = []string{
		"--uts", "sh", "-c", `echo "$0" >/proc/sys/kernel/hostname && exec "$@"`, agentPod(node), binary,
		"--node-name=" + node, "--namespace=" + namespace, "--host-root=" + a.host, "--state-dir=" + dir + "/state",
		"--csi-socket=" + a.socket, "--registration-dir=" + dir, "--kubelet-plugin-dir=" + dir, "--http-address=" + a.http,
		"--health-interval=0", "--log-format=text", "--log-level=info",
	}
	a.env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	return a
}

// begin starts the process and waits until kubelet's calls are answered.
func (a *agentProcess) begin() {
	a.t.Helper()
	a.launch()
	a.eventually("it serves CSI", func() bool {
		_, err := a.csi().NodeGetInfo(a.t.Context(), &csi.NodeGetInfoRequest{})
		return err == nil
	})
}

// end kills the process as a power failure would; its host stays.
func (a *agentProcess) end() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	_ = a.cmd.Wait() // it was killed
}

func (a *agentProcess) csi() csi.NodeClient {
	a.t.Helper()
	conn, err := grpc.NewClient("unix://"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = conn.Close() })
	return csi.NewNodeClient(conn)
}

// wire carries connections to the apiserver until it is cut.
type wire struct {
	t       *testing.T
	address string
	to      string

	mu       sync.Mutex
	listener net.Listener
	ends     map[net.Conn]bool
	done     sync.WaitGroup
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	w := &wire{t: t, to: to, ends: map[net.Conn]bool{}, address: freeAddress(t)}
	w.join()
	t.Cleanup(w.cut)
	return w
}

// join lets connections through.
func (w *wire) join() {
	w.t.Helper()
	listener, err := net.Listen("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listener = listener
	w.done.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			w.done.Go(func() { w.carry(near) })
		}
	})
}

// cut breaks the connections and refuses new ones, as an apiserver does that is gone.
func (w *wire) cut() {
	w.mu.Lock()
	if w.listener != nil {
		_ = w.listener.Close()
		w.listener = nil
	}
	for end := range w.ends {
		_ = end.Close()
	}
	w.mu.Unlock()
	w.done.Wait()
}

func (w *wire) carry(near net.Conn) {
	defer near.Close()
	far, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", w.to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	if w.listener == nil {
		w.mu.Unlock()
		return
	}
	w.ends[near], w.ends[far] = true, true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.ends, near)
		delete(w.ends, far)
	}()
	there := make(chan error, 1)
	go func() {
		_, err := io.Copy(far, near)
		there <- errors.Join(err, far.Close())
	}()
	_, _ = io.Copy(near, far) // one of the ends is gone, which is what a wire is for
	_ = near.Close()
	<-there
}
