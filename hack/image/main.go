// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command image builds Berth's container image without a container engine: both
// commands, static, in one layer and nothing else, as one archive that
// `docker load`, `ctr image import` and `kind load image-archive` take. What the image is
// made of is in it as an attestation, and beside it in a file of its own.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/internal/ociimage"
	"github.com/berth-dev/berth/internal/sbom"
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
	for _, command := range commands {
		binary := filepath.Join(binaries, command)
		if err := compile(command, binary, version); err != nil {
			return err
		}
		spec.Files = append(spec.Files, ociimage.File{Path: "/" + command, Source: binary, Mode: 0o755})
	}
	image, err := ociimage.Build(spec)
	if err != nil {
		return fmt.Errorf("build image %s: %w", reference, err)
	}
	document, err := describe(image, reference, version)
	if err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(out, ".tar")+".spdx.json", document, 0o644); err != nil {
		return err
	}
	if err := ociimage.WriteImage(out, reference, image, ociimage.Attestation{PredicateType: sbom.PredicateType, Predicate: document}); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	fmt.Printf("    %s: %s, %d MiB\n", out, reference, info.Size()>>20)
	return nil
}

// describe writes down what the image is made of.
func describe(image v1.Image, reference, version string) ([]byte, error) {
	contents, err := ociimage.Contents(image)
	if err != nil {
		return nil, err
	}
	var files []sbom.File
	for path, content := range contents {
		files = append(files, sbom.File{Path: path, Content: content})
	}
	tag, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return nil, err
	}
	return sbom.Image(tag.Context().Name(), cmp.Or(version, tag.TagStr()), "github.com/berth-dev/berth", files)
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
