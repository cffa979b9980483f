// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/cluster"
)

// node is a node of the testbed as its own kernel sees it.
type node struct {
	cluster *cluster.Cluster
	name    string
}

// openNode returns nil on another cluster than the testbed: nothing is known of its
// processes there.
func openNode(name string) *node {
	c, err := cluster.Open("")
	if err != nil {
		return nil
	}
	return &node{cluster: c, name: name}
}

func (n *node) run(ctx context.Context, script string) (string, error) {
	result, err := n.cluster.Exec(ctx, n.name, "bash", "-c", script)
	if err != nil {
		return "", err
	}
	if result.ExitCode != 0 {
		return "", fmt.Errorf("%s: exit status %d: %s", n.name, result.ExitCode, result.Stderr)
	}
	return string(result.Stdout), nil
}

// startCounting counts the programs that the node starts from now on, by the
// kernel's own tracepoint (sched:sched_process_exec, Documentation/trace/events.rst):
// threads and forks that run no new program are not counted.
func (n *node) startCounting(ctx context.Context) error {
	_, err := n.run(ctx, `set -e
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing
echo 0 > tracing_on; echo > trace; echo 4096 > buffer_size_kb
echo 1 > events/sched/sched_process_exec/enable; echo 1 > tracing_on`)
	if err != nil {
		return fmt.Errorf("count the programs that start: %w", err)
	}
	return nil
}

// stopCounting returns how often each program was started, by its name.
func (n *node) stopCounting(ctx context.Context) (map[string]int, error) {
	out, err := n.run(ctx, `set -e
cd /sys/kernel/tracing; echo 0 > tracing_on
sed -n 's/.*sched_process_exec: filename=\([^ ]*\) .*/\1/p' trace > /run/berth-bench-started
echo 0 > events/sched/sched_process_exec/enable; echo > trace
sort /run/berth-bench-started | uniq -c; rm /run/berth-bench-started`)
	if err != nil {
		return nil, fmt.Errorf("read what started: %w", err)
	}
	return parseStarted(out)
}

// measuring are the programs that counting itself starts.
var measuring = []string{"bash", "sed", "sort", "uniq", "rm", "mountpoint", "mount", "ps"}

// parseStarted reads the output of uniq -c, without what counting itself started.
func parseStarted(out string) (map[string]int, error) {
	started := map[string]int{}
	for line := range strings.Lines(out) {
		count, file, found := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(count)
		if !found || err != nil {
			return nil, fmt.Errorf("read what started: %q is no count and path", line)
		}
		if name := path.Base(file); !slices.Contains(measuring, name) {
			started[name] += n
		}
	}
	return started, nil
}

// residentKiB returns the resident memory (VmRSS) of every process of that name.
func (n *node) residentKiB(ctx context.Context, names []string) (map[string][]int, error) {
	out, err := n.run(ctx, "ps -e -o rss=,comm=")
	if err != nil {
		return nil, err
	}
	return parseResident(out, names)
}

// maxComm is how much of a name the kernel keeps (TASK_COMM_LEN, less its zero).
const maxComm = 15

func parseResident(out string, names []string) (map[string][]int, error) {
	resident := map[string][]int{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		for _, name := range names {
			if fields[1] != name[:min(len(name), maxComm)] {
				continue
			}
			kib, err := strconv.Atoi(fields[0])
			if err != nil {
				return nil, fmt.Errorf("read resident memory: %w", err)
			}
			resident[name] = append(resident[name], kib)
		}
	}
	return resident, nil
}
