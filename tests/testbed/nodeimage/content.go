// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"embed"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// files is laid over the root filesystem.
//
//go:embed all:files
var files embed.FS

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
		if dir := filepath.Dir(path); strings.HasSuffix(dir, "bin") || strings.HasSuffix(dir, "lib/cni") {
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
	"uuidd.socket", "iscsid.socket", "postgresql.service",
}

// enabledUnits are started at boot beyond those that Debian enables.
var enabledUnits = []string{"containerd.service", "node-setup.service", "kubelet.service", "kube-proxy.service"}

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
