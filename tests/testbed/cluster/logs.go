// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/guest"
)

func (c *Cluster) consoleLog(node string) string {
	return filepath.Join(c.nodeDir(node), guest.ConsoleLog)
}

// OpenLogs returns the testbed in the folder (DefaultDir if empty) for its logs
// only, which are kept when it is gone.
func OpenLogs(dir string) (*Cluster, error) {
	if dir == "" {
		var err error
		if dir, err = DefaultDir(); err != nil {
			return nil, err
		}
	}
	return &Cluster{dir: dir}, nil
}

// LogNames are the names that Logs knows: steps of Up, components and nodes.
func (c *Cluster) LogNames() ([]string, error) {
	logs, err := filepath.Glob(c.logPath("*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, log := range logs {
		names = append(names, strings.TrimSuffix(filepath.Base(log), ".log"))
	}
	sort.Strings(names)
	return names, nil
}

// Logs writes the log of a component or a step; of a node, QEMU's output, the
// console and, if the node answers, the last lines of its journal.
func (c *Cluster) Logs(ctx context.Context, out io.Writer, name string, journalLines int) error {
	content, err := os.ReadFile(c.logPath(name))
	if err != nil {
		names, _ := c.LogNames()
		return fmt.Errorf("no log of %q: there are %s", name, strings.Join(names, ", "))
	}
	out.Write(content)
	if !slices.Contains(c.Nodes(), name) {
		return nil
	}
	console, err := os.ReadFile(c.consoleLog(name))
	if err == nil {
		fmt.Fprintf(out, "--- console of %s\n%s", name, console)
	}
	if on, err := c.PoweredOn(name); err != nil || !on {
		return err
	}
	result, err := c.Exec(ctx, name, "journalctl", "--no-pager", "--quiet", fmt.Sprintf("--lines=%d", journalLines))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "--- journal of %s\n%s%s", name, result.Stdout, result.Stderr)
	return nil
}
