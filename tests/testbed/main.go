// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testbed runs a real Kubernetes cluster on one machine, with real
// disks in its nodes. README.md beside it tells how to use it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

// command is one of testbed's commands.
type command struct {
	name string
	// usage is what follows the name.
	usage string
	help  string
	run   func(ctx context.Context, arguments []string) error
}

// commands are in the order in which one meets them.
var commands []command

func init() {
	commands = []command{
		{"up", "[--nodes N] [--image IMAGE.tar]", "build what is missing and start a testbed", runUp},
		{"down", "", "end it: no process, network or disk is left", runDown},
		{"status", "", "show its components and nodes", runStatus},
		{"kubectl", "ARGUMENT...", "run kubectl as the administrator", runKubectl},
		{"run", "-- COMMAND...", "run a command in the testbed's network, with KUBECONFIG set", runRun},
		{"kubeconfig", "", "print the path of the administrator's kubeconfig", runKubeconfig},
		{"exec", "[-i] NODE COMMAND...", "run a command on a node", runExec},
		{"cp", "FILE NODE:PATH", "copy a file to a node", runCopy},
		{"load", "IMAGE.tar [NODE...]", "import container images on the nodes", runLoad},
		{"disks", "NODE", "list a node's disks", runDisks},
		{"disk add", "NODE --serial S --size BYTES", "plug a blank disk into a node", runDiskAdd},
		{"disk remove", "NODE SERIAL", "unplug a disk from a node", runDiskRemove},
		{"disk move", "NODE SERIAL NODE", "unplug a disk from a node and plug it into another", runDiskMove},
		{"disk warn", "NODE SERIAL BITS", "have an NVMe disk say in its health log that it is failing", runDiskWarn},
		{"foreign-digests", "", "read the foreign disks from outside; fail if one has changed", runForeignDigests},
		{"node kill", "NODE...", "take a node's power away", runNodeKill},
		{"node start", "NODE... [--disk-order O]", "give it back and wait until the node is Ready", runNodeStart},
		{"net cut", "NODE...", "cut a node's network", runNetCut},
		{"net heal", "NODE...", "undo that", runNetHeal},
		{"control-plane stop", "", "end etcd, the API server and the controllers; the nodes run on", runControlPlaneStop},
		{"control-plane start", "", "start them again", runControlPlaneStart},
		{"etcd save", "NAME", "keep a copy of etcd's state; the control plane is away for seconds", runEtcdSave},
		{"etcd restore", "NAME", "put etcd back to that state; nobody else is told", runEtcdRestore},
		{"logs", "[COMPONENT|NODE]", "print a log, or the names of all", runLogs},
	}
}

// usageError is a mistake in the command line.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

// exitStatus ends testbed with the status of a command that it ran.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	stop()
	var status exitStatus
	var usage usageError
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
	case errors.As(err, &status):
		os.Exit(int(status))
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

// dispatch finds the command that the arguments name and runs it.
func dispatch(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 || arguments[0] == "help" || arguments[0] == "--help" || arguments[0] == "-h" {
		printHelp()
		return nil
	}
	for _, command := range commands {
		words := 1
		name := arguments[0]
		if len(arguments) > 1 && command.name == arguments[0]+" "+arguments[1] {
			words, name = 2, command.name
		}
		if command.name == name {
			err := command.run(ctx, arguments[words:])
			if usage, ok := errors.AsType[usageError](err); ok {
				return usageError{fmt.Sprintf("%s: want 'testbed %s %s'", usage.message, command.name, command.usage)}
			}
			return err
		}
	}
	return usageError{fmt.Sprintf("no command %q: 'testbed help' lists them", arguments[0])}
}

func printHelp() {
	fmt.Println("testbed runs a Kubernetes cluster with real disks on this machine.\n\nCommands:")
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, command := range commands {
		fmt.Fprintf(table, "  %s %s\t%s\n", command.name, command.usage, command.help)
	}
	table.Flush()
	fmt.Println("\nIt is kept in .testbed in the repository, or where BERTH_TESTBED_DIR says.")
}

// parse parses a command's flags and checks how many arguments are left.
func parse(flags *pflag.FlagSet, arguments []string, atLeast, atMost int) error {
	flags.SetInterspersed(true)
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return usageError{err.Error()}
	}
	switch n := flags.NArg(); {
	case n < atLeast:
		return usageError{"too few arguments"}
	case atMost >= 0 && n > atMost:
		return usageError{"too many arguments"}
	}
	return nil
}

func newFlags(name string) *pflag.FlagSet { return pflag.NewFlagSet(name, pflag.ContinueOnError) }
