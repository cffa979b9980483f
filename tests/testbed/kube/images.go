// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berth-dev/berth/internal/ociimage"
	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// pauseSource is the program of the sandbox image: it waits to be ended, and
// reaps the orphans of its pod.
//
//go:embed pause/main.go
var pauseSource []byte

// Images that every node has. The sidecars carry the names under which a
// cluster with an uplink would pull them, so that the same manifests serve both.
const (
	PauseImage       = "localhost/pause:1"
	BusyboxImage     = "localhost/busybox:1"
	ResizerImage     = "registry.k8s.io/sig-storage/csi-resizer:" + ResizerVersion
	SnapshotterImage = "registry.k8s.io/sig-storage/csi-snapshotter:" + SnapshotterVersion
)

// ImagesKey identifies the archives of the images.
func ImagesKey(programs map[string]string, busybox string) (*artifact.Key, error) {
	key := artifact.NewKey("images").Add("pause", string(pauseSource)).Add("go", runtime.Version())
	for _, name := range []string{"csi-resizer", "csi-snapshotter"} {
		key.Add(name, filepath.Base(filepath.Dir(programs[name])))
	}
	return key, key.AddFile("busybox", busybox)
}

// BuildImages writes the archives of the images that every node has into dir.
func BuildImages(ctx context.Context, dir string, programs map[string]string, busybox string, log *os.File) error {
	source, err := os.MkdirTemp("", "testbed-pause-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(source)
	if err := os.WriteFile(filepath.Join(source, "main.go"), pauseSource, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "go.mod"), []byte("module pause\n\ngo 1.26\n"), 0o644); err != nil {
		return err
	}
	if err := goBuild(ctx, source, ".", filepath.Join(source, "pause"), "", log); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list the commands of %s: %w", busybox, err)
	}
	box := []ociimage.File{{Path: "/bin/busybox", Source: busybox}, {Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777}}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			box = append(box, ociimage.File{Path: "/bin/" + applet, Link: "busybox"})
		}
	}
	for _, image := range []struct {
		reference string
		spec      ociimage.Spec
	}{
		{PauseImage, ociimage.Spec{Files: []ociimage.File{{Path: "/pause", Source: filepath.Join(source, "pause")}}, Entrypoint: []string{"/pause"}}},
		{BusyboxImage, ociimage.Spec{Files: box, Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}},
		{ResizerImage, ociimage.Spec{Files: []ociimage.File{{Path: "/csi-resizer", Source: programs["csi-resizer"]}}, Entrypoint: []string{"/csi-resizer"}}},
		{SnapshotterImage, ociimage.Spec{Files: []ociimage.File{{Path: "/csi-snapshotter", Source: programs["csi-snapshotter"]}}, Entrypoint: []string{"/csi-snapshotter"}}},
	} {
		name, _, _ := strings.Cut(image.reference[strings.LastIndexByte(image.reference, '/')+1:], ":")
		if err := ociimage.WriteFile(filepath.Join(dir, name+".tar"), image.reference, image.spec); err != nil {
			return err
		}
	}
	return nil
}
