// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/berth-dev/berth/tests/testbed/cluster"
)

func runUp(ctx context.Context, arguments []string) error {
	flags := newFlags("up")
	options := cluster.UpOptions{Out: os.Stdout}
	flags.IntVar(&options.Nodes, "nodes", 3, "how many nodes, 1 to 9")
	flags.IntVar(&options.CPUs, "cpus", 0, "virtual CPUs of each node (default 2, or 1 if this machine has too few)")
	flags.IntVar(&options.MemoryMiB, "memory", 3072, "memory of each node in MiB")
	flags.StringArrayVar(&options.Images, "image", nil, "archive of container images that every node has from the start; may be repeated")
	if err := parse(flags, arguments, 0, 0); err != nil {
		return err
	}
	_, err := cluster.Up(ctx, options)
	return err
}

func runDown(ctx context.Context, arguments []string) error {
	if err := parse(newFlags("down"), arguments, 0, 0); err != nil {
		return err
	}
	started := time.Now()
	found, err := cluster.Down(ctx, "")
	if err != nil {
		return err
	}
	if !found {
		fmt.Println("There is no testbed here.")
		return nil
	}
	fmt.Printf("The testbed is gone after %.1fs. Its cache and logs are kept.\n", time.Since(started).Seconds())
	return nil
}

func runStatus(ctx context.Context, arguments []string) error {
	if err := parse(newFlags("status"), arguments, 0, 0); err != nil {
		return err
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("Running since %s, %s, network namespace %s\n\n", c.CreatedAt().Format(time.DateTime), c.Accel(), c.Namespace().Name)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COMPONENT\tPID\tMEMORY")
	for _, component := range status.Components {
		if component.PID == 0 {
			fmt.Fprintf(table, "%s\t-\tended\n", component.Name)
			continue
		}
		fmt.Fprintf(table, "%s\t%d\t%d MiB\n", component.Name, component.PID, component.ResidentBytes>>20)
	}
	fmt.Fprintln(table, "\t\t\nNODE\tPID\tMEMORY\tADDRESS\tPOWER\tNETWORK\tKUBELET")
	for _, node := range status.Nodes {
		power, network, pid := "on", "up", fmt.Sprint(node.PID)
		if node.PID == 0 {
			power, pid = "off", "-"
		}
		if node.NetworkCut {
			network = "cut"
		}
		fmt.Fprintf(table, "%s\t%s\t%d MiB\t%s\t%s\t%s\t%s\n", node.Name, pid, node.ResidentBytes>>20, node.Address, power, network, node.Kubelet)
	}
	return table.Flush()
}

func runKubeconfig(_ context.Context, arguments []string) error {
	if err := parse(newFlags("kubeconfig"), arguments, 0, 0); err != nil {
		return err
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	fmt.Println(c.Kubeconfig())
	return nil
}

func runKubectl(_ context.Context, arguments []string) error {
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	return become(c, append([]string{c.Program("kubectl")}, arguments...))
}

func runRun(_ context.Context, arguments []string) error {
	if len(arguments) > 0 && arguments[0] == "--" {
		arguments = arguments[1:]
	}
	if len(arguments) == 0 {
		return usageError{"no command"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	return become(c, arguments)
}

// become replaces this process by a command in the testbed's network.
func become(c *cluster.Cluster, argv []string) error {
	full := c.Namespace().Command(argv...)
	path, err := exec.LookPath(full[0])
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"KUBECONFIG":        c.Kubeconfig(),
		cluster.DirVariable: c.Dir(),
		"PATH":              filepath.Dir(c.Program("kubectl")) + ":" + os.Getenv("PATH"),
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return fmt.Errorf("run %s: %w", argv[0], syscall.Exec(path, full, os.Environ()))
}

func runLogs(ctx context.Context, arguments []string) error {
	flags := newFlags("logs")
	lines := flags.Int("lines", 500, "how many lines of a node's journal")
	if err := parse(flags, arguments, 0, 1); err != nil {
		return err
	}
	// The logs of a testbed that failed to start are there too.
	c, err := cluster.Open("")
	if err != nil {
		if c, err = cluster.OpenLogs(""); err != nil {
			return err
		}
	}
	if flags.NArg() == 0 {
		names, err := c.LogNames()
		for _, name := range names {
			fmt.Println(name)
		}
		return err
	}
	return c.Logs(ctx, os.Stdout, flags.Arg(0), *lines)
}
