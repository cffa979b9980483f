// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
	"github.com/berth-dev/berth/tests/testbed/progress"
)

// artifact shows the step that makes a product, or that it is there.
func (u *up) artifact(name string, key *artifact.Key, build func(dir string, log *os.File, s *progress.Step) error) (dir string, err error) {
	logName := strings.ReplaceAll(name, " ", "-")
	err = u.step(name, logName, func(s *progress.Step) error {
		s.Detail("cached")
		dir, err = u.store().Get(key, func(dir string) error {
			s.Detail("")
			log, err := os.Create(u.logPath(logName))
			if err != nil {
				return err
			}
			defer log.Close()
			return build(dir, log, s)
		})
		return err
	})
	return dir, err
}

// build makes the artifacts, each one a step.
func (u *up) build(ctx context.Context) error {
	busybox, err := lookBusybox()
	if err != nil {
		return err
	}
	for _, program := range kube.Programs {
		key, err := program.Key(u.repository)
		if err != nil {
			return err
		}
		dir, err := u.artifact("build "+program.Name, key, func(dir string, log *os.File, _ *progress.Step) error {
			return program.Build(ctx, u.repository, dir, log)
		})
		if err != nil {
			return err
		}
		u.state.Programs[program.Name] = filepath.Join(dir, program.Name)
	}
	if _, err := u.artifact("copy the snapshot CRDs", kube.CRDsKey(), func(dir string, _ *os.File, _ *progress.Step) error {
		return kube.BuildCRDs(ctx, u.repository, dir)
	}); err != nil {
		return err
	}
	imagesKey, err := kube.ImagesKey(u.state.Programs, busybox)
	if err != nil {
		return err
	}
	imagesDir, err := u.artifact("make container images", imagesKey, func(dir string, log *os.File, _ *progress.Step) error {
		return kube.BuildImages(ctx, dir, u.state.Programs, busybox, log)
	})
	if err != nil {
		return err
	}
	return u.buildNodeImage(ctx, imagesDir, busybox)
}

func (u *up) buildNodeImage(ctx context.Context, imagesDir, busybox string) error {
	rootfsKey := nodeimage.RootfsKey()
	rootfsDir, err := u.artifact("install Debian for the nodes", rootfsKey, func(dir string, log *os.File, _ *progress.Step) error {
		return nodeimage.BuildRootfs(ctx, dir, log)
	})
	if err != nil {
		return err
	}
	programs := nodeimage.Programs{"kubelet": u.state.Programs["kubelet"], "kube-proxy": u.state.Programs["kube-proxy"]}
	images, err := filepath.Glob(filepath.Join(imagesDir, "*.tar"))
	if err != nil {
		return err
	}
	for _, archive := range u.options.Images {
		image, err := u.keepImage(archive)
		if err != nil {
			return err
		}
		images = append(images, image)
	}
	baseKey, err := nodeimage.BaseKey(rootfsKey, programs, images)
	if err != nil {
		return err
	}
	u.state.ImageDir, err = u.artifact("make the nodes' disk", baseKey, func(dir string, log *os.File, _ *progress.Step) error {
		return nodeimage.BuildBase(ctx, dir, rootfsDir, programs, images, busybox, log)
	})
	if err != nil {
		return err
	}
	qemuDir, err := u.artifact("unpack QEMU", nodeimage.QEMUKey(), func(dir string, log *os.File, _ *progress.Step) error {
		return nodeimage.BuildQEMU(ctx, dir, log)
	})
	if err != nil {
		return err
	}
	u.state.QEMU = nodeimage.QEMU(qemuDir)
	if err := u.step("choose KVM or TCG", "", func(s *progress.Step) error {
		accel, why := guest.Probe(ctx, u.state.QEMU, filepath.Join(u.state.ImageDir, nodeimage.KernelFile), filepath.Join(u.state.ImageDir, nodeimage.InitrdFile))
		u.state.Accel = accel
		s.Detail("%s: %s", accel, why)
		return ctx.Err()
	}); err != nil {
		return err
	}
	u.state.ForeignDir, err = u.artifact("make the foreign disks", nodeimage.ForeignKey(rootfsKey), func(dir string, log *os.File, s *progress.Step) error {
		if err := nodeimage.BuildForeign(ctx, dir, nodeimage.Boot{QEMU: u.state.QEMU, Accel: u.state.Accel, BaseDir: u.state.ImageDir}, log, func(at string) { s.Detail("%s", at) }); err != nil {
			return err
		}
		s.Detail("%d", len(nodeimage.ForeignDisks))
		baseline, err := foreignBaseline(dir)
		if err != nil {
			return err
		}
		return writeJSON(filepath.Join(dir, baselineFile), baseline)
	})
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(u.state.ForeignDir, baselineFile))
	if err != nil {
		return err
	}
	return json.Unmarshal(content, &u.state.Foreign)
}

// keepImage copies an archive of the caller's into the cache, under a name with
// its hash, so that the nodes' disk can be known by it.
func (u *up) keepImage(archive string) (string, error) {
	key := artifact.NewKey("image").Add("name", filepath.Base(archive))
	if err := key.AddFile("archive", archive); err != nil {
		return "", err
	}
	name := filepath.Base(archive)
	dir, err := u.store().Get(key, func(dir string) error {
		content, err := os.ReadFile(archive)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), content, 0o644)
	})
	return filepath.Join(dir, name), err
}

// baselineFile holds the digests of the foreign disks as they were made.
const baselineFile = "foreign.json"
