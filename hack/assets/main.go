// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command assets builds the control plane that the integration tests run
// against, from the same modules and in the same cache as the testbed, and
// prints the folder that has it: what envtest reads from KUBEBUILDER_ASSETS.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/cluster"
	"github.com/berth-dev/berth/tests/testbed/kube"
)

// wanted are the programs that envtest starts.
var wanted = []string{"etcd", "kube-apiserver", "kubectl"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	dir, err := build(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(dir)
}

// build returns the folder with links to the programs.
func build(ctx context.Context) (string, error) {
	repository, err := os.Getwd()
	if err != nil {
		return "", err
	}
	testbed, err := cluster.DefaultDir()
	if err != nil {
		return "", err
	}
	store := &artifact.Store{Dir: filepath.Join(testbed, "cache")}
	assets := filepath.Join(repository, "build", "assets")
	if err := os.MkdirAll(assets, 0o755); err != nil {
		return "", err
	}
	for _, program := range kube.Programs {
		if !slices.Contains(wanted, program.Name) {
			continue
		}
		key, err := program.Key(repository)
		if err != nil {
			return "", err
		}
		if !store.Has(key) {
			fmt.Fprintf(os.Stderr, "    building %s (once; some minutes on two cores)\n", program.Name)
		}
		dir, err := store.Get(key, func(dir string) error { return program.Build(ctx, repository, dir, os.Stderr) })
		if err != nil {
			return "", err
		}
		link := filepath.Join(assets, program.Name)
		if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		if err := os.Symlink(filepath.Join(dir, program.Name), link); err != nil {
			return "", err
		}
	}
	return assets, nil
}
