// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodeimage makes what the nodes of a testbed boot: a Debian with a
// kubelet, containerd and the storage tools of a real node, the container
// images it needs, and the disks of other people that must never be touched.
package nodeimage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// Release is the Debian release of the nodes.
const Release = "trixie"

// packages are the nodes' packages: a kernel, an init, a container runtime,
// and the tools that volumes are made with.
var packages = []string{
	"linux-image-amd64", "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps", "psmisc", "util-linux", "fdisk",
	"qemu-guest-agent", "containerd", "crun",
	"iproute2", "nftables", "conntrack", "ethtool", "socat", "curl", "ca-certificates",
	"lvm2", "thin-provisioning-tools", "mdadm", "gdisk", "parted", "e2fsprogs", "xfsprogs", "btrfs-progs", "cryptsetup-bin",
	"nvme-cli", "open-iscsi", "targetcli-fb", "smartmontools", "sg3-utils", "fio",
	// Databases that write to volumes. The package of PostgreSQL makes an empty cluster in
	// /var/lib/postgresql, which pods copy: initdb takes minutes under emulation.
	"sqlite3", "postgresql",
}

// RootfsKey identifies the packed Debian.
func RootfsKey() *artifact.Key {
	return artifact.NewKey("debian").Add("release", Release).Add("packages", strings.Join(packages, " ")).Add("options", strings.Join(bootstrapOptions, " "))
}

// bootstrapOptions keep out what no node of a test cluster reads, and the
// rebuilding of an initial RAM disk that nothing boots.
var bootstrapOptions = []string{
	"--variant=minbase",
	"--aptopt=APT::Install-Recommends \"false\"",
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
	// The compiler of PostgreSQL's queries, which is larger than all the rest of it.
	"--dpkgopt=path-exclude=/usr/lib/*/libLLVM*", "--dpkgopt=path-exclude=/usr/lib/llvm-*", "--dpkgopt=path-exclude=/usr/lib/*/libz3*",
	"--dpkgopt=path-exclude=/usr/lib/postgresql/*/lib/bitcode/*",
	"--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold",
	`--essential-hook=mkdir -p "$1/etc/initramfs-tools" && echo "update_initramfs=no" > "$1/etc/initramfs-tools/update-initramfs.conf"`,
}

// rootfsArchive is the packed Debian in its product's folder.
const rootfsArchive = "rootfs.tar"

// BuildRootfs packs a Debian into dir. Output goes to the log.
func BuildRootfs(ctx context.Context, dir string, log *os.File) error {
	argv := append([]string{}, bootstrapOptions...)
	argv = append(argv, "--include="+strings.Join(packages, ","), Release, filepath.Join(dir, rootfsArchive))
	return run(ctx, log, "mmdebstrap", argv...)
}

// run runs a command and logs its output.
func run(ctx context.Context, log *os.File, name string, argv ...string) error {
	fmt.Fprintln(log, "+", name, strings.Join(argv, " "))
	command := exec.CommandContext(ctx, name, argv...)
	command.Stdout, command.Stderr = log, log
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
