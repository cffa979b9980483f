// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures any provisioner of a cluster by the name of its
// StorageClass: how long a claim takes to be Bound and a pod to be Running one at
// a time, how many claims pinned to one node are bound and deleted per second,
// and what that costs in requests to the API server and in memory. It prints a
// Markdown table.
//
//	bench -classes berth-lvm,berth-hostpath -node node1
//
// Times are taken where events arrive at the client. Numbers of emulated nodes
// are comparable within one run only.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

// plan is what to measure.
type plan struct {
	kubeconfig string
	classes    []string
	node       string
	image      string
	size       string
	single     int
	burst      int
	processes  []string
	timeout    time.Duration
}

func main() {
	var p plan
	var classes, processes string
	flag.StringVar(&p.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig of the cluster")
	flag.StringVar(&classes, "classes", "", "StorageClasses to measure, comma-separated; each may be name=size")
	flag.StringVar(&p.node, "node", "", "node that everything is pinned to (needed)")
	flag.StringVar(&p.image, "image", "localhost/busybox:1", "image of the pods")
	flag.StringVar(&p.size, "size", "64Mi", "size of a claim")
	flag.IntVar(&p.single, "n", 10, "claims one at a time")
	flag.IntVar(&p.burst, "burst", 100, "claims at once, without pods; 0 leaves the burst out")
	flag.StringVar(&processes, "processes", "node-agent,provisioner,csi-resizer", "processes of the testbed's node whose memory to report, comma-separated")
	flag.DurationVar(&p.timeout, "timeout", 30*time.Minute, "bound on the whole run")
	flag.Parse()
	if classes == "" || p.node == "" || p.kubeconfig == "" {
		fmt.Fprintln(os.Stderr, "bench: -classes, -node and -kubeconfig (or KUBECONFIG) are needed")
		os.Exit(2)
	}
	p.classes, p.processes = strings.Split(classes, ","), strings.Split(processes, ",")
	if err := run(p); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures until it is done, interrupted or out of time.
func run(p plan) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, p.timeout)
	defer stop()
	return measure(ctx, p, os.Stdout, os.Stderr)
}
