// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command peers builds the provisioners that hack/bench-peers.sh measures beside
// Berth, each from its pinned Go module (modules/) and without a container engine:
//
//	build/peers/local-path-provisioner.tar   rancher/local-path-provisioner
//	build/peers/topolvm-with-sidecar.tar     TopoLVM, csi-provisioner, registrar
//	build/peers/topolvm-crd.yaml             TopoLVM's CRD, as its module has it
//
// The images have the programs and nothing else, as Berth's has. What TopoLVM's
// node plugin starts (nsenter, mkfs.ext4, mount, blkid, findmnt) it finds in the
// host's /usr, which manifests/topolvm.yaml mounts; the links /bin, /sbin, /lib
// and /lib64 of its image lead there. LVM it calls in the host's namespaces, as
// its release does. So both sides start the same files of the same Debian, and no
// image of a distribution has to be imported on an emulated node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berth-dev/berth/internal/ociimage"
)

// modulesDir is the folder of the pinning modules in the repository.
const modulesDir = "tests/bench/peers/modules"

// Versions, as modules/*/go.mod pin them and the manifests name them.
const (
	localPathVersion   = "v0.0.30"
	topolvmVersion     = "v0.41.0"
	provisionerVersion = "v6.4.0"
)

// topolvmModule is the module that has TopoLVM's CRD.
const topolvmModule = "github.com/topolvm/topolvm"

// program is a command that is built from a pinned module.
type program struct {
	name string
	// module is the folder of the module that pins it, under modulesDir.
	module string
	// path is the package to build.
	path string
	// ldflags set what the program says its version is.
	ldflags string
}

var programs = []program{
	{"local-path-provisioner", "local-path", "github.com/rancher/local-path-provisioner", "-X main.VERSION=" + localPathVersion},
	{"hypertopolvm", "topolvm", topolvmModule + "/cmd/hypertopolvm", "-X " + topolvmModule + ".Version=" + strings.TrimPrefix(topolvmVersion, "v")},
	{"csi-provisioner", "sidecars", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner", "-X main.version=" + provisionerVersion},
	{"registrar", "sidecars", "./registrar", ""},
}

func main() {
	out := flag.String("output", "build/peers", "folder that the images and the CRD go to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := build(ctx, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out string) error {
	bin, err := filepath.Abs(filepath.Join(out, "bin"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		fmt.Printf("    building %s\n", p.name)
		if err := p.build(ctx, bin); err != nil {
			return err
		}
	}
	for name, spec := range images(bin) {
		reference := "localhost/" + name
		base, _, _ := strings.Cut(name, ":")
		if err := ociimage.WriteFile(filepath.Join(out, base+".tar"), reference, spec); err != nil {
			return err
		}
	}
	return copyCRD(ctx, out)
}

// images are by their name and tag.
func images(bin string) map[string]ociimage.Spec {
	file := func(name string) ociimage.File {
		return ociimage.File{Path: "/" + name, Source: filepath.Join(bin, name), Mode: 0o755}
	}
	link := func(path, target string) ociimage.File { return ociimage.File{Path: path, Link: target} }
	return map[string]ociimage.Spec{
		"local-path-provisioner:" + localPathVersion: {
			Architecture: runtime.GOARCH,
			Files:        []ociimage.File{file("local-path-provisioner")},
			Entrypoint:   []string{"/local-path-provisioner"},
		},
		// One image for all of TopoLVM, as its release has. hypertopolvm does what
		// the name says by which it is started.
		"topolvm-with-sidecar:" + topolvmVersion: {
			Architecture: runtime.GOARCH,
			Files: []ociimage.File{
				file("hypertopolvm"), link("/topolvm-node", "hypertopolvm"), link("/topolvm-controller", "hypertopolvm"),
				file("csi-provisioner"), file("registrar"),
				link("/bin", "usr/bin"), link("/sbin", "usr/sbin"), link("/lib", "usr/lib"), link("/lib64", "usr/lib64"),
				{Path: "/usr", Mode: fs.ModeDir | 0o755},
				{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			},
			Entrypoint: []string{"/hypertopolvm"},
			Env:        []string{"PATH=/usr/sbin:/usr/bin"},
		},
	}
}

// build builds a static, stripped program, with the flags of the testbed's own
// (tests/testbed/kube), so that packages are compiled once for both.
func (p program) build(ctx context.Context, bin string) error {
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-mod=readonly",
		"-o", filepath.Join(bin, p.name), "-ldflags", strings.TrimSpace("-s -w "+p.ldflags), p.path)
	command.Dir = filepath.Join(modulesDir, p.module)
	command.Env = goEnvironment()
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("build %s: %w", p.name, err)
	}
	return nil
}

func goEnvironment() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=-buildvcs=false")
}

// copyCRD copies TopoLVM's CRD out of its module, which the build has fetched.
func copyCRD(ctx context.Context, out string) error {
	command := exec.CommandContext(ctx, "go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", topolvmModule)
	command.Dir = filepath.Join(modulesDir, "topolvm")
	command.Env = goEnvironment()
	dir, err := command.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("find the module of TopoLVM: %w", err)
	}
	crd, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/bases/topolvm.io_logicalvolumes.yaml"))
	if err != nil {
		return fmt.Errorf("read the CRD of TopoLVM: %w", err)
	}
	return os.WriteFile(filepath.Join(out, "topolvm-crd.yaml"), crd, 0o644)
}
