// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// searchPath is where the host's programs are looked for, and the PATH they get.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// packages name what to install when a program is missing; the names are the same
// on Debian, Ubuntu, Fedora, RHEL and SUSE.
var packages = map[string]string{
	"blkid":      "util-linux",
	"cryptsetup": "cryptsetup (cryptsetup-bin on Debian)",
	"dmsetup":    "dmsetup (device-mapper on RHEL)",
	"e2fsck":     "e2fsprogs",
	"lvm":        "lvm2",
	"mkfs.btrfs": "btrfs-progs (btrfsprogs on SUSE)",
	"mkfs.ext4":  "e2fsprogs",
	"mkfs.xfs":   "xfsprogs",
	"resize2fs":  "e2fsprogs",
	"wipefs":     "util-linux",
	"xfs_growfs": "xfsprogs",
}

// LookPath returns the path, on the host, of a program. Symbolic links count as
// the host resolves them. An error wraps volume.ErrToolMissing only when every
// directory was looked into and has no such program; it names the package that
// usually has it.
func (h *Host) LookPath(ctx context.Context, name string) (string, error) {
	var path string
	err := h.InMountNamespace(ctx, func() (err error) {
		path, err = lookPath(name)
		return err
	})
	return path, err
}

// lookPath looks in the calling thread's mount namespace.
func lookPath(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("look for program %q: %w: a name without a directory is wanted", name, volume.ErrInvalid)
	}
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		switch err := unix.Stat(path, &st); {
		case err == unix.ENOENT || err == unix.ENOTDIR:
			continue
		case err != nil:
			return "", fmt.Errorf("look for program %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0 {
			return path, nil
		}
	}
	hint := "install it on the host"
	if p, ok := packages[name]; ok {
		hint = "install the package " + p + " on the host"
	}
	return "", fmt.Errorf("%w: %s is not in %s: %s", volume.ErrToolMissing, name, searchPath, hint)
}
