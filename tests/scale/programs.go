// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

// hollowAgents is the process that has the agents of the hollow nodes.
type hollowAgents struct {
	*process
	in      *os.File
	answers *json.Decoder
	mu      sync.Mutex
}

func startHollow(spec hollow.Spec, log string) (*hollowAgents, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer theirOut.Close()
	h := &hollowAgents{
		process: &process{name: "the hollow agents", argv: []string{self, hollow.Command}, stdin: theirIn, stdout: theirOut, log: log},
		in:      in, answers: json.NewDecoder(out),
	}
	if err := h.start(); err != nil {
		return nil, err
	}
	return h, json.NewEncoder(in).Encode(spec)
}

// report asks how the agents are; trim has them give memory back before.
func (h *hollowAgents) report(trim bool) (hollow.Report, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	question := "report\n"
	if trim {
		question = "trim\n"
	}
	var r hollow.Report
	if _, err := h.in.WriteString(question); err != nil {
		return r, errors.Join(err, h.err())
	}
	if err := h.answers.Decode(&r); err != nil {
		return r, errors.Join(err, h.err())
	}
	if r.Failed != "" {
		return r, errors.New(r.Failed)
	}
	return r, nil
}

// kubeconfig that acts by a token.
func (c *cluster) kubeconfig(path, token string) error {
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: c.config.Host, CertificateAuthorityData: c.config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
}

// program is a command of Berth that answers over HTTP.
type program struct {
	*process
	http string
}

// newProvisioner prepares the real command, under its own service account.
func newProvisioner(ctx context.Context, c *cluster, binary, dir string) (*program, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	token, err := c.token(ctx, "berth-provisioner", nil)
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := c.kubeconfig(kubeconfig, token); err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	p := &program{http: "127.0.0.1:" + ports[0]}
	p.process = &process{
		name: "the provisioner", log: filepath.Join(dir, "log"), env: []string{"KUBECONFIG=" + kubeconfig},
		argv: []string{
			binary, "--namespace=" + namespace, "--csi-socket=" + filepath.Join(dir, "csi.sock"), "--http-address=" + p.http,
			"--leader-elect=true", "--log-format=text", "--log-level=warn",
		},
	}
	return p, nil
}

// awaitLead returns when the provisioner leads and knows everything.
func (p *program) awaitLead(ctx context.Context) error {
	return until(ctx, "the provisioner leads", 5*time.Minute, nil, func() (bool, error) {
		leads, err := p.metric(ctx, "leader_election_master_status")
		if err != nil || leads != 1 {
			return false, err
		}
		return p.ready(ctx)
	})
}

func (p *program) ready(ctx context.Context) (bool, error) {
	body, err := get(ctx, "http://"+p.http+"/readyz")
	return string(body) == "ok\n", err
}

// newAgent prepares the real command of a node, in a mount namespace that stands for its host
// and with its pod's hostname.
func newAgent(c *cluster, binary, dir string, node hollow.Node) (agent *program, host *process, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, nil, err
	}
	host = &process{name: "the stand-in for a host", log: filepath.Join(dir, "host.log"), argv: []string{"sleep", "infinity"}, unshare: syscall.CLONE_NEWNS}
	if err := host.start(); err != nil {
		return nil, nil, err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := c.kubeconfig(kubeconfig, node.Token); err != nil {
		return nil, host, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, host, err
	}
	agent = &program{http: "127.0.0.1:" + ports[0]}
	agent.process = &process{
		name: "the agent of " + node.Name, log: filepath.Join(dir, "log"), env: []string{"KUBECONFIG=" + kubeconfig},
		argv: []string{
			"unshare", "--uts", "sh", "-c", `echo "$0" >/proc/sys/kernel/hostname && exec "$@"`, node.Pod, binary,
			"--node-name=" + node.Name, "--namespace=" + namespace, fmt.Sprintf("--host-root=/proc/%d/root", host.pid()), "--state-dir=" + dir + "/state",
			"--csi-socket=" + dir + "/csi.sock", "--registration-dir=" + dir, "--kubelet-plugin-dir=" + dir, "--http-address=" + agent.http,
			"--log-format=text", "--log-level=warn",
		},
	}
	if err := agent.start(); err != nil {
		return nil, host, err
	}
	return agent, host, nil
}

// metric is the sum over all series of a metric.
func (p *program) metric(ctx context.Context, name string) (float64, error) {
	body, err := get(ctx, "http://"+p.http+"/metrics")
	if err != nil {
		return 0, err
	}
	return sumOf(body, name)
}

func sumOf(text []byte, name string) (float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return 0, fmt.Errorf("parse metrics: %w", err)
	}
	var sum float64
	for _, metric := range families[name].GetMetric() {
		sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
	}
	return sum, nil
}

// served is how many requests the apiserver says it has answered, by whomever.
func (c *cluster) served(ctx context.Context) (float64, error) {
	body, err := c.typed.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the apiserver's metrics: %w", err)
	}
	return sumOf(body, "apiserver_request_total")
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
