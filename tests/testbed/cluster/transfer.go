// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/berth-dev/berth/tests/testbed/kube"
)

// smallFile is the size up to which a file goes over the agent's line, which
// needs no network but is slow.
const smallFile = 64 << 10

// Copy copies a file to a path on a node, with its permissions. The folder must
// exist. Files of more than 64 KiB need the node's network.
func (c *Cluster) Copy(ctx context.Context, source, node, target string) error {
	if err := c.needPower(node); err != nil {
		return err
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	mode := uint32(info.Mode().Perm())
	if info.Size() <= smallFile {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := c.agent(node).WriteFile(ctx, target, content, mode); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		return nil
	}
	return c.offer(source, func(url string) error {
		return c.script(ctx, node, `curl -sSf -o "$1.partial" "$2" && chmod "$3" "$1.partial" && mv "$1.partial" "$1"`, target, url, fmt.Sprintf("%o", mode))
	})
}

// Load imports the images of an archive (an OCI layout or a docker-archive in
// one tar file) into containerd on the nodes, all if none are named. A node into
// which this archive was the last one imported is left alone: Load returns the
// nodes that it changed.
func (c *Cluster) Load(ctx context.Context, archive string, nodes ...string) (changed []string, err error) {
	if len(nodes) == 0 {
		nodes = c.Nodes()
	}
	for _, node := range nodes {
		if err := c.needPower(node); err != nil {
			return nil, err
		}
	}
	sum, err := digest(archive)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		s, err := c.loadNode(node)
		if err != nil {
			return nil, err
		}
		if len(s.Archives) == 0 || s.Archives[len(s.Archives)-1] != sum {
			changed = append(changed, node)
		}
	}
	if len(changed) == 0 {
		return nil, nil
	}
	return changed, c.offer(archive, func(url string) error {
		failed := make([]error, len(changed))
		var group sync.WaitGroup
		for i, node := range changed {
			group.Go(func() { failed[i] = c.importArchive(ctx, node, url, sum) })
		}
		group.Wait()
		return errors.Join(failed...)
	})
}

// importArchive imports what a URL offers into one node's containerd, so that a
// power loss does not take it away again.
func (c *Cluster) importArchive(ctx context.Context, node, url, sum string) error {
	if err := c.script(ctx, node, `set -o pipefail; curl -sSf "$1" | ctr --namespace k8s.io images import - && sync`, url); err != nil {
		return err
	}
	return c.changeNode(ctx, node, func(s *nodeState) error {
		s.Archives = append(slices.DeleteFunc(s.Archives, func(have string) bool { return have == sum }), sum)
		return nil
	})
}

// script runs a bash script on a node and fails if it does.
func (c *Cluster) script(ctx context.Context, node, text string, argv ...string) error {
	result, err := c.Exec(ctx, node, append([]string{"bash", "-c", text, "bash"}, argv...)...)
	if err != nil {
		return err
	}
	if result.ExitCode != 0 {
		return fmt.Errorf("%s: exit status %d: %s%s", node, result.ExitCode, result.Stdout, result.Stderr)
	}
	return nil
}

// offer serves one file to the nodes while use runs. Only the testbed's network
// reaches it.
func (c *Cluster) offer(path string, use func(url string) error) error {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	var listener net.Listener
	if err := c.Namespace().Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(kube.ServerAddress, "0"))
		return err
	}); err != nil {
		return fmt.Errorf("serve %s: %w", path, err)
	}
	route := "/" + rand.Text() + "/" + filepath.Base(path)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{token}/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != route {
			http.NotFound(w, r)
			return
		}
		http.ServeFile(w, r, path)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	defer server.Close()
	return use("http://" + listener.Addr().String() + route)
}
