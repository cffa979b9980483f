// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// Programs are the commands that are copied into the image, name to file.
type Programs map[string]string

// names returns the programs' names in a fixed order.
func (p Programs) names() []string { return slices.Sorted(maps.Keys(p)) }

// BaseKey identifies the base image.
func BaseKey(rootfs *artifact.Key, programs Programs, images []string) (*artifact.Key, error) {
	key := artifact.NewKey("base").Add("rootfs", rootfs.String()).Add("init", string(initScript)).
		Add("modules", strings.Join(rootModules, " ")).Add("masked", strings.Join(maskedUnits, " ")).
		Add("enabled", strings.Join(enabledUnits, " ")).Add("import", importScript).Add("unused", strings.Join(unusedModules, " ")).Add("size", fmt.Sprint(RootSizeBytes))
	if err := key.AddFS("files", files); err != nil {
		return nil, err
	}
	for _, name := range programs.names() {
		// A program's path ends in the key of what it was built from.
		key.Add("program "+name, filepath.Base(filepath.Dir(programs[name])))
	}
	for _, image := range images {
		key.Add("image", filepath.Base(filepath.Dir(image))+"/"+filepath.Base(image))
	}
	return key, nil
}

// Names of the files in the base image's folder.
const (
	KernelFile = "kernel"
	InitrdFile = "initrd"
	RootFile   = "root.img"
)

// RootSizeBytes is the size of the nodes' root disk.
const RootSizeBytes = 12 << 30

// BuildBase makes a bootable root disk, its kernel and its initial RAM disk in
// dir, from the packed Debian in rootfsDir. The container images are
// imported into its containerd.
func BuildBase(ctx context.Context, dir, rootfsDir string, programs Programs, images []string, busybox string, log *os.File) error {
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := run(ctx, log, "tar", "-C", root, "-xf", filepath.Join(rootfsDir, rootfsArchive)); err != nil {
		return err
	}
	if err := copyFiles(root); err != nil {
		return err
	}
	for name, source := range programs {
		if err := copyProgram(filepath.Join(root, "usr/local/bin", name), source); err != nil {
			return err
		}
	}
	if err := importImages(ctx, root, images, log); err != nil {
		return err
	}
	if err := setUnits(root); err != nil {
		return err
	}
	if err := removeUnused(root); err != nil {
		return err
	}
	// Each node gets its own identity when it starts.
	for name, content := range map[string]string{"etc/machine-id": "", "etc/hostname": "localhost\n", "etc/fstab": "", "etc/resolv.conf": "# There is no name server: the testbed has no uplink.\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"etc/nvme/hostnqn", "etc/nvme/hostid", "etc/iscsi/initiatorname.iscsi", "var/lib/dbus/machine-id"} {
		if err := os.Remove(filepath.Join(root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	bzImage, modulesDir, err := findKernel(root)
	if err != nil {
		return err
	}
	if err := prepareModules(ctx, root, modulesDir, log); err != nil {
		return err
	}
	if err := writeKernel(filepath.Join(dir, KernelFile), bzImage); err != nil {
		return err
	}
	if err := writeInitramfs(filepath.Join(dir, InitrdFile), modulesDir, busybox); err != nil {
		return err
	}
	image := filepath.Join(dir, RootFile)
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(image, RootSizeBytes); err != nil {
		return err
	}
	if err := run(ctx, log, "mkfs.ext4", "-q", "-L", "root", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-O", "^metadata_csum,^orphan_file", "-m", "0", "-d", root, image); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// importScript runs the image's own containerd, in a root of its own and on this
// machine's kernel, and imports images into it. That is a hundred times faster
// than in an emulated guest.
const importScript = `
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/containerd
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' > /run/config.toml
containerd --config /run/config.toml --log-level warn &
for try in $(seq 100); do
    if ctr version > /dev/null 2>&1; then break; fi
    sleep 0.1
done
for archive in /opt/images/*.tar; do ctr --namespace k8s.io images import "$archive"; done
kill $!
wait $! || true
`

// importImages imports the archives of container images into the containerd of
// a root filesystem.
func importImages(ctx context.Context, root string, archives []string, log *os.File) error {
	staging := filepath.Join(root, "opt/images")
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return err
	}
	for _, archive := range archives {
		if err := copyProgram(filepath.Join(staging, filepath.Base(archive)), archive); err != nil {
			return err
		}
	}
	// All mounts and processes go with the namespaces of the command.
	if err := run(ctx, log, "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "chroot", root, "/bin/sh", "-c", importScript); err != nil {
		return fmt.Errorf("import container images: %w", err)
	}
	return os.RemoveAll(staging)
}
