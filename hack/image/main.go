// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command image builds Berth's container image without a container engine: both
// commands, static, in one layer and nothing else, as one archive that
// `docker load`, `ctr image import` and `kind load image-archive` take.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/berth-dev/berth/internal/ociimage"
)

// commands are the binaries of the image; each lies in its root.
var commands = []string{"node-agent", "provisioner"}

func main() {
	out := flag.String("output", "build/berth-image.tar", "where the archive goes")
	reference := flag.String("reference", "ghcr.io/berth-dev/berth:dev", "name and tag of the image")
	version := flag.String("version", os.Getenv("VERSION"), "version in the image's labels")
	flag.Parse()
	if err := build(*out, *reference, *version); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func build(out, reference, version string) error {
	binaries := filepath.Join(filepath.Dir(out), "image")
	if err := os.MkdirAll(binaries, 0o755); err != nil {
		return err
	}
	spec := ociimage.Spec{
		Entrypoint: []string{"/node-agent"},
		Files:      []ociimage.File{{Path: "/LICENSE", Source: "LICENSE"}},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "Berth",
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version":  version,
		},
	}
	for _, name := range commands {
		binary := filepath.Join(binaries, name)
		if err := compile(name, binary, version); err != nil {
			return err
		}
		spec.Files = append(spec.Files, ociimage.File{Path: "/" + name, Source: binary, Mode: 0o755})
	}
	if err := ociimage.WriteFile(out, reference, spec); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	fmt.Printf("    %s: %s, %d MiB\n", out, reference, info.Size()>>20)
	return nil
}

// compile builds one command so that it needs nothing of the image it runs in.
func compile(name, binary, version string) error {
	// grpcnotrace leaves out a tracer that nobody reads and that keeps the linker from
	// dropping what is not used.
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace",
		"-ldflags", "-s -w -X github.com/berth-dev/berth/internal/command.buildVersion="+version, "-o", binary, "./cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build cmd/%s: %w", name, err)
	}
	return nil
}
