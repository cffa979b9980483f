// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodeimage makes what the nodes of a testbed boot: a Debian with a
// kubelet, containerd and the storage tools of a real node, the container
// images it needs, and the disks of other people that must never be touched.
package nodeimage

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/artifact"
)

// Release is the Debian release of the nodes.
const Release = "trixie"

// packages are the nodes' packages: a kernel, an init, a container runtime,
// and the tools that volumes are made with.
var packages = []string{
	"linux-image-amd64", "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps", "psmisc", "util-linux", "fdisk",
	"qemu-guest-agent", "containerd", "runc", "containernetworking-plugins",
	"iproute2", "nftables", "conntrack", "ethtool", "socat", "curl", "ca-certificates",
	"lvm2", "thin-provisioning-tools", "mdadm", "gdisk", "parted", "e2fsprogs", "xfsprogs", "btrfs-progs", "cryptsetup-bin",
	"nvme-cli", "open-iscsi", "targetcli-fb", "smartmontools", "sg3-utils", "fio",
}

// maskedUnits do nothing that a node of a test cluster needs, and cost time at
// every start under emulation.
var maskedUnits = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "xfs_scrub_all.timer", "systemd-tmpfiles-clean.timer", "mdcheck_start.timer", "mdcheck_continue.timer",
	"mdmonitor-oneshot.timer", "open-iscsi.service", "iscsid.service", "rtslib-fb-targetctl.service", "smartmontools.service",
	"nvmefc-boot-connections.service", "nvmf-autoconnect.service", "remote-fs.target", "remote-fs-pre.target",
	"getty.target", "getty-static.service", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-logind.service",
	"systemd-user-sessions.service", "systemd-firstboot.service", "systemd-hwdb-update.service", "systemd-update-done.service",
	"systemd-journal-catalog-update.service", "systemd-machine-id-commit.service", "systemd-binfmt.service",
	"systemd-pcrmachine.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-tpm2-setup.service",
	"systemd-tpm2-setup-early.service", "systemd-random-seed.service", "systemd-hibernate-clear.service", "systemd-pstore.service",
	"systemd-ask-password-console.path", "systemd-ask-password-wall.path", "ldconfig.service", "proc-sys-fs-binfmt_misc.automount",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "modprobe@fuse.service", "sys-fs-fuse-connections.mount", "tmp.mount",
	"systemd-udev-load-credentials.service", "systemd-sysusers.service", "systemd-journal-flush.service", "systemd-pcrextend.socket",
	"systemd-pcrlock.socket", "systemd-creds.socket", "systemd-initctl.socket", "systemd-sysext.socket", "systemd-hostnamed.socket",
	"uuidd.socket", "iscsid.socket",
}

// unusedModules are folders of drivers for hardware that no guest has.
var unusedModules = []string{
	"sound", "net/bluetooth", "net/mac80211", "net/wireless", "drivers/accel", "drivers/bluetooth", "drivers/comedi", "drivers/gpu", "drivers/hid",
	"drivers/hwmon", "drivers/iio", "drivers/infiniband", "drivers/input", "drivers/media", "drivers/mmc", "drivers/net/ethernet",
	"drivers/net/wireless", "drivers/platform", "drivers/staging", "drivers/usb", "drivers/video",
}

// prepareModules drops the modules for other hardware, and uncompresses the
// others: a guest would do it each time it loads one.
func prepareModules(ctx context.Context, root, modulesDir string, log *os.File) error {
	for _, dir := range unusedModules {
		if err := os.RemoveAll(filepath.Join(modulesDir, "kernel", dir)); err != nil {
			return err
		}
	}
	if err := run(ctx, log, "find", modulesDir, "-name", "*.ko.xz", "-exec", "xz", "--decompress", "--threads=1", "{}", "+"); err != nil {
		return err
	}
	return run(ctx, log, "chroot", root, "depmod", filepath.Base(modulesDir))
}

// removeUnused removes programs that only cost time: the generators of units,
// which run at each start and make none here, and iptables, whose rules
// kube-proxy would look for, one command each, before it uses nftables.
func removeUnused(root string) error {
	var paths []string
	for _, pattern := range []string{"usr/lib/systemd/system-generators/*", "usr/sbin/iptables*", "usr/sbin/ip6tables*", "usr/sbin/xtables*"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// enabledUnits are started at boot beyond those that Debian enables.
var enabledUnits = []string{"containerd.service", "node-setup.service", "kubelet.service", "kube-proxy.service"}

// files is laid over the root filesystem.
//
//go:embed all:files
var files embed.FS

// Programs are the commands that are copied into the image, name to file.
type Programs map[string]string

// RootfsKey identifies the packed Debian.
func RootfsKey() *artifact.Key {
	return artifact.NewKey("debian").Add("release", Release).Add("packages", strings.Join(packages, " ")).Add("options", strings.Join(bootstrapOptions, " "))
}

// bootstrapOptions keep out what no node of a test cluster reads, and the
// building of an initial RAM disk that nothing boots.
var bootstrapOptions = []string{
	"--variant=minbase",
	"--aptopt=APT::Install-Recommends \"false\"",
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
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

// copyFiles lays the embedded files over the root filesystem. A file is
// executable if it lies in a folder of programs.
func copyFiles(root string) error {
	tree, err := fs.Sub(files, "files")
	if err != nil {
		return err
	}
	return fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(root, path)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		content, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(filepath.Dir(path), "bin") {
			mode = 0o755
		}
		return os.WriteFile(target, content, mode)
	})
}

func copyProgram(target, source string) error {
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return os.WriteFile(target, content, 0o755)
}

// setUnits masks and enables units by the links that systemctl would make.
func setUnits(root string) error {
	system := filepath.Join(root, "etc/systemd/system")
	wants := filepath.Join(system, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	link := func(target, path string) error {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		return os.Symlink(target, path)
	}
	for _, unit := range maskedUnits {
		if err := link("/dev/null", filepath.Join(system, unit)); err != nil {
			return err
		}
	}
	for _, unit := range enabledUnits {
		source := "/etc/systemd/system/" + unit
		if _, err := os.Lstat(filepath.Join(root, source)); err != nil {
			source = "/usr/lib/systemd/system/" + unit
		}
		if err := link(source, filepath.Join(wants, unit)); err != nil {
			return err
		}
	}
	return link("/usr/lib/systemd/system/multi-user.target", filepath.Join(system, "default.target"))
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

// names returns the programs' names in a fixed order.
func (p Programs) names() []string { return slices.Sorted(maps.Keys(p)) }
