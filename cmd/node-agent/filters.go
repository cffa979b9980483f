// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/internal/command"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/hostexec"
)

// explainTimeout bounds the look at all disks of a node.
const explainTimeout = 10 * time.Minute

// filterOptions are those of "node-agent filters".
type filterOptions struct {
	explain  bool
	config   string
	labels   string
	hostRoot string
}

func parseFilterOptions(args []string, stderr io.Writer) (filterOptions, error) {
	var o filterOptions
	fs := pflag.NewFlagSet("node-agent filters", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.SortFlags = false
	fs.BoolVar(&o.explain, "explain", false, "say for every disk of this node which filter or rule drops or keeps it; without it the configuration is only validated")
	fs.StringVar(&o.config, "config", "", "file with the filters or with the ConfigMap that holds them, - for standard input (default the filters that Berth ships)")
	fs.StringVar(&o.labels, "node-labels", "", "labels of the node, as a=b,c=d: rules with nodes count where they match")
	fs.StringVar(&o.hostRoot, "host-root", "/proc/1/root", "where the host is: /proc/PID/root, or / when this process runs on the host itself")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.hostRoot != "/" && !procRoot.MatchString(o.hostRoot) {
		return o, fmt.Errorf("--host-root %q must be / or /proc/PID/root", o.hostRoot)
	}
	return o, nil
}

// explainFilters runs "node-agent filters" and returns its exit code.
func explainFilters(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseFilterOptions(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return command.ExitOK
	}
	var filters *discovery.Filters
	var node labels.Set
	if err == nil {
		node, err = labels.ConvertSelectorToLabelsMap(o.labels)
		if err != nil {
			err = fmt.Errorf("--node-labels %q: %w", o.labels, err)
		}
	}
	if err == nil {
		filters, err = readFilters(o.config, stdin)
	}
	if err != nil {
		fmt.Fprintf(stderr, "node-agent filters: %v\n", err)
		return command.ExitOptions
	}
	for _, note := range filters.Notes {
		fmt.Fprintln(stderr, "note:", note)
	}
	if !o.explain {
		fmt.Fprintln(stdout, "the filters are valid")
		return command.ExitOK
	}
	if err := explain(o, filters, node, stdout); err != nil {
		fmt.Fprintf(stderr, "node-agent filters: %v\n", err)
		return command.ExitFailed
	}
	return command.ExitOK
}

// readFilters reads a configuration as an agent does: a ConfigMap with it, or only what
// stands in the ConfigMap's key.
func readFilters(path string, stdin io.Reader) (*discovery.Filters, error) {
	var text []byte
	var err error
	switch path {
	case "":
		return discovery.ParseFilters(discovery.DefaultFilters)
	case "-":
		text, err = io.ReadAll(stdin)
	default:
		text, err = os.ReadFile(filepath.Clean(path))
	}
	if err != nil {
		return nil, fmt.Errorf("read the filters: %w", err)
	}
	var head struct {
		Kind string `yaml:"kind"`
	}
	if yaml.Unmarshal(text, &head) != nil || head.Kind != "ConfigMap" {
		return discovery.ParseFilters(string(text))
	}
	var config corev1.ConfigMap
	if err := sigsyaml.UnmarshalStrict(text, &config); err != nil {
		return nil, fmt.Errorf("read the ConfigMap: %w", err)
	}
	return discovery.FromConfigMap(config.Data)
}

func explain(o filterOptions, filters *discovery.Filters, node labels.Set, stdout io.Writer) (err error) {
	hostRoot := o.hostRoot
	if hostRoot == "/" {
		hostRoot = ""
	}
	host, err := hostexec.New(hostexec.Options{HostRoot: hostRoot})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	disks, err := discovery.Explain(ctx, discovery.ExplainOptions{
		Filters: filters, NodeLabels: node, HostRoot: host.Root(), Runner: host,
	})
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "PATH\tSIZE\tMODEL\tSERIAL\tUSABLE\tREASON\tMESSAGE\tFILTERS")
	for _, d := range disks {
		if d.Rule == d.Message {
			d.Rule = "<none>" // it has said so
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%t\t%s\t%s\t%s\n", d.Path, resource.NewQuantity(d.SizeBytes, resource.BinarySI),
			orNone(d.Model), orNone(d.Serial), d.Usable, d.Reason, d.Message, d.Rule)
	}
	return table.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
