// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kube builds Kubernetes and the CSI sidecars from their Go modules and
// says how each component of a small, real cluster is started.
package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// Version is the release of Kubernetes; modules/kubernetes/go.mod pins it.
const Version = "v1.37.2"

// Versions of the sidecars, as modules/sidecars/go.mod pins them.
const (
	ResizerVersion     = "v2.3.0"
	SnapshotterVersion = "v8.7.0"
)

// Program is a command that is built from a pinned module.
type Program struct {
	Name string
	// module is the folder of the module that pins it, under modules/.
	module string
	// path is the package to build.
	path string
	// ldflags set what the program says its version is.
	ldflags string
}

// ModulesDir is the folder of the pinning modules in the repository.
const ModulesDir = "tests/testbed/kube/modules"

// Programs are all that the testbed builds, those first that take longest.
var Programs = []Program{
	kubernetes("kube-apiserver"), kubernetes("kube-controller-manager"), kubernetes("kube-scheduler"),
	kubernetes("kubelet"), kubernetes("kube-proxy"), kubernetes("kubectl"),
	{Name: "etcd", module: "kubernetes", path: "go.etcd.io/etcd/server/v3"},
	{Name: "snapshot-controller", module: "sidecars", path: "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller", ldflags: "-X main.version=" + SnapshotterVersion},
	{Name: "csi-snapshotter", module: "sidecars", path: "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter", ldflags: "-X main.version=" + SnapshotterVersion},
	{Name: "csi-resizer", module: "sidecars", path: "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer", ldflags: "-X main.version=" + ResizerVersion},
}

func kubernetes(name string) Program {
	const variable = "k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(Version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := []string{"-X " + variable + "gitVersion=" + Version, "-X " + variable + "gitMajor=" + major, "-X " + variable + "gitMinor=" + minor}
	return Program{Name: name, module: "kubernetes", path: "k8s.io/kubernetes/cmd/" + name, ldflags: strings.Join(flags, " ")}
}

// Key identifies the program's build.
func (p Program) Key(repository string) (*artifact.Key, error) {
	key := artifact.NewKey(p.Name).Add("go", runtime.Version()).Add("arch", runtime.GOARCH).Add("path", p.path).Add("flags", p.ldflags)
	for _, name := range []string{"go.mod", "go.sum"} {
		if err := key.AddFile(name, filepath.Join(repository, ModulesDir, p.module, name)); err != nil {
			return nil, err
		}
	}
	return key, nil
}

// Build builds the program into dir.
func (p Program) Build(ctx context.Context, repository, dir string, log *os.File) error {
	return goBuild(ctx, filepath.Join(repository, ModulesDir, p.module), p.path, filepath.Join(dir, p.Name), p.ldflags, log)
}

// goBuild builds a static, stripped program, with the flags that a release of
// it would have, so that packages are compiled once for all of them.
func goBuild(ctx context.Context, moduleDir, path, out, ldflags string, log *os.File) error {
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-mod=readonly", "-o", out, "-ldflags", strings.TrimSpace("-s -w "+ldflags), path)
	command.Dir = moduleDir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	command.Stdout, command.Stderr = log, log
	fmt.Fprintln(log, "+ (cd", moduleDir, "&& CGO_ENABLED=0", strings.Join(command.Args, " ")+")")
	if err := command.Run(); err != nil {
		return fmt.Errorf("build %s: %w", path, err)
	}
	return nil
}

// ModuleDir returns where the go command keeps the source of a module that a
// pinning module requires.
func ModuleDir(ctx context.Context, repository, module, path string) (string, error) {
	command := exec.CommandContext(ctx, "go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path)
	command.Dir = filepath.Join(repository, ModulesDir, module)
	command.Env = append(os.Environ(), "GOWORK=off")
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", path, err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		download := exec.CommandContext(ctx, "go", "mod", "download", path)
		download.Dir, download.Env = command.Dir, command.Env
		if out, err := download.CombinedOutput(); err != nil {
			return "", fmt.Errorf("download module %s: %w: %s", path, err, out)
		}
		return ModuleDir(ctx, repository, module, path)
	}
	return dir, nil
}
