// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/testbed/kube"
)

// httpClient speaks to the control plane as the administrator, from within the
// testbed's network.
func (c *Cluster) httpClient() (*http.Client, error) {
	dir := string(c.files())
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, kube.Admin+".crt"), filepath.Join(dir, kube.Admin+".key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = c.Namespace().Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     dial,
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}, nil
}

// get reads a URL of the control plane.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", url, response.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

// NodeStatus is what the API server knows of a node.
type NodeStatus struct {
	Name  string
	Ready bool
	// BootID is that of the start which the kubelet reported from.
	BootID string
	// Message is the kubelet's, as why it is not ready.
	Message string
}

// NodeStatuses returns what the API server knows of the nodes.
func (c *Cluster) NodeStatuses(ctx context.Context) ([]NodeStatus, error) {
	client, err := c.httpClient()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	body, err := get(ctx, client, kube.ServerURL()+"/api/v1/nodes")
	if err != nil {
		return nil, err
	}
	return parseNodes(body)
}

func parseNodes(body []byte) ([]NodeStatus, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Conditions []struct {
					Type    string `json:"type"`
					Status  string `json:"status"`
					Message string `json:"message"`
				} `json:"conditions"`
				NodeInfo struct {
					BootID string `json:"bootID"`
				} `json:"nodeInfo"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("read the list of nodes: %w", err)
	}
	var statuses []NodeStatus
	for _, item := range list.Items {
		status := NodeStatus{Name: item.Metadata.Name, BootID: item.Status.NodeInfo.BootID, Message: "its kubelet has not reported"}
		for _, condition := range item.Status.Conditions {
			if condition.Type == "Ready" {
				status.Ready, status.Message = condition.Status == "True", condition.Message
			}
		}
		statuses = append(statuses, status)
	}
	return statuses, nil
}

// readyPoll is how often WaitReady looks.
const readyPoll = 500 * time.Millisecond

// WaitReady waits until the nodes (all if none are named) run, and are Ready
// since their last start: a node that lost its power is Ready in the API for a
// while, so the boot that the kubelet reports is compared with the guest's own. A node
// whose emulated machine stalled while it booted is started again.
func (c *Cluster) WaitReady(ctx context.Context, nodes ...string) error {
	return c.waitReady(ctx, nodes, func([]string) {})
}

// waitReady tells report which nodes are still awaited, each time they change.
func (c *Cluster) waitReady(ctx context.Context, nodes []string, report func(waiting []string)) error {
	if len(nodes) == 0 {
		nodes = c.Nodes()
	}
	waiting := slices.Clone(nodes)
	boots, restarts := map[string]string{}, map[string]int{}
	report(waiting)
	for {
		var why []string
		statuses, err := c.NodeStatuses(ctx)
		if err != nil && ctx.Err() == nil {
			why = append(why, err.Error())
		}
		for _, node := range slices.Clone(waiting) {
			if on, err := c.PoweredOn(node); err != nil {
				return err
			} else if !on {
				return &LogError{Err: fmt.Errorf("%s: %w", node, ErrPoweredOff), Log: c.logPath(node)}
			}
			at := slices.IndexFunc(statuses, func(s NodeStatus) bool { return s.Name == node })
			switch {
			case at < 0:
				why = append(why, node+" has not registered")
			case !statuses[at].Ready:
				why = append(why, node+": "+statuses[at].Message)
			default:
				if boots[node] == "" {
					result, err := c.Exec(ctx, node, "cat", "/proc/sys/kernel/random/boot_id")
					if err == nil {
						boots[node] = strings.TrimSpace(string(result.Stdout))
					}
				}
				if boots[node] != statuses[at].BootID {
					why = append(why, node+" has not reported since its last start")
					continue
				}
				waiting = slices.DeleteFunc(waiting, func(n string) bool { return n == node })
				report(waiting)
			}
		}
		for _, node := range waiting {
			if restarts[node] >= mostRestarts {
				continue
			}
			restarted, err := c.restartStalled(ctx, node)
			if err != nil {
				return err
			}
			if restarted {
				restarts[node]++
				delete(boots, node)
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return &LogError{Err: fmt.Errorf("nodes not Ready: %s: %w", strings.Join(why, "; "), ctx.Err()), Log: c.consoleLog(waiting[0])}
		case <-time.After(readyPoll):
		}
	}
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	full := c.Namespace().Command(append([]string{c.Program("kubectl"), "--kubeconfig=" + c.Kubeconfig()}, argv...)...)
	command := exec.CommandContext(ctx, full[0], full[1:]...)
	command.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
