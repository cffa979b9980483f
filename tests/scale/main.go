// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command scale measures how Berth's costs grow with the number of nodes. For each number it
// starts an apiserver, the real provisioner, the real agent of one node and, in one process,
// those of all the others over hollow hosts, fills the nodes with volumes, and measures what
// is asked of the apiserver when nothing happens, memory, the time to bind claims, and the
// herd after the apiserver's restart. It prints a Markdown table and draws a plot.
//
//	scale -nodes 10,100,1000 -assets DIR -binaries DIR
//
// It needs root: the agent in a process of its own makes namespaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

// plan is what to measure.
type plan struct {
	sizes    []int
	volumes  int
	claims   int
	minutes  int
	rounds   int
	assets   string
	binaries string
	manifest string
	dir      string
	results  string
	plot     string
	timeout  time.Duration
	// kubeconfig of a cluster with Berth, instead of a control plane of its own.
	kubeconfig string
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == hollow.Command {
		exit(hollow.Run(os.Stdin, os.Stdout, os.Stderr))
	}
	ctrl.SetLogger(logr.Discard()) // what its clients say is in their errors
	p, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(2)
	}
	exit(all(p))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func parse(args []string) (plan, error) {
	var p plan
	var sizes string
	// A set of its own: controller-runtime has put -kubeconfig into the common one.
	fs := flag.NewFlagSet("scale", flag.ContinueOnError)
	fs.StringVar(&sizes, "nodes", "10,100,1000", "numbers of nodes, comma-separated, each at least 2; each is measured on a control plane of its own; empty only prints what -results has")
	fs.IntVar(&p.volumes, "volumes", 20, "volumes per node that are there before anything is measured")
	fs.IntVar(&p.claims, "claims", 1000, "claims to bind at once, spread over the nodes")
	fs.IntVar(&p.minutes, "idle", 10, "minutes to measure in which nothing happens")
	fs.IntVar(&p.rounds, "rounds", 3, "how often claims are bound and the apiserver is killed")
	fs.StringVar(&p.assets, "assets", os.Getenv("KUBEBUILDER_ASSETS"), "directory with etcd and kube-apiserver (default $KUBEBUILDER_ASSETS)")
	fs.StringVar(&p.binaries, "binaries", "build/scale", "directory with node-agent and provisioner")
	fs.StringVar(&p.manifest, "manifest", "deploy/berth.yaml", "the one-file install")
	fs.StringVar(&p.dir, "dir", "", "directory to work in; empty is memory, /dev/shm, where there is such a thing")
	fs.StringVar(&p.results, "results", "build/bench-scale.json", "file with the results of all numbers of nodes so far")
	fs.StringVar(&p.plot, "plot", "build/bench-scale.svg", "file for the plot")
	fs.StringVar(&p.kubeconfig, "kubeconfig", "", "use this cluster, with Berth and its provisioner, in place of a control plane of its own: nothing is killed then, and no memory measured but the agents'")
	fs.DurationVar(&p.timeout, "timeout", 4*time.Hour, "bound on the whole run")
	if err := fs.Parse(args); err != nil {
		return p, err
	}
	for size := range strings.SplitSeq(sizes, ",") {
		if size == "" {
			continue
		}
		n, err := strconv.Atoi(size)
		if err != nil || n < 2 || n > 5000 {
			return p, fmt.Errorf("-nodes %q: each must be a number from 2 to 5000", sizes)
		}
		p.sizes = append(p.sizes, n)
	}
	switch {
	case p.volumes < 1 || p.claims < 1 || p.minutes < 1 || p.rounds < 1:
		return p, errors.New("-volumes, -claims, -idle and -rounds must be at least 1")
	case fs.NArg() > 0:
		return p, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case len(p.sizes) == 0:
		return p, nil
	case os.Getuid() != 0:
		return p, errors.New("needs root: the agent in a process of its own makes namespaces")
	}
	needed := []string{filepath.Join(p.binaries, "node-agent")}
	if p.kubeconfig == "" {
		needed = append(needed, filepath.Join(p.assets, "etcd"), filepath.Join(p.assets, "kube-apiserver"), filepath.Join(p.binaries, "provisioner"), p.manifest)
	}
	for _, file := range needed {
		if _, err := os.Stat(file); err != nil {
			return p, fmt.Errorf("%w: hack/bench-scale.sh builds what is needed", err)
		}
	}
	return p, hollow.RaiseFiles() // the processes that are started have it from here
}

// all measures one number of nodes after the other, until it is done, interrupted or out of
// time. What was measured is kept.
func all(p plan) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	context.AfterFunc(ctx, cancel) // the second interrupt is not waited for
	ctx, stop := context.WithTimeout(ctx, p.timeout)
	defer stop()
	if p.kubeconfig != "" {
		p.results = "" // they do not stand beside those of a control plane that does nothing else
	}
	known, err := readResults(p.results)
	if err != nil {
		return err
	}
	for _, n := range p.sizes {
		r, err := measure(ctx, p, n)
		if err != nil {
			return err
		}
		known = known.with(r)
		if err := known.write(p.results); err != nil {
			return err
		}
	}
	if len(known) == 0 {
		return fmt.Errorf("%s has no results", p.results)
	}
	known.print(os.Stdout)
	return os.WriteFile(p.plot, known.plot(), 0o644)
}
