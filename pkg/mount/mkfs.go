// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// Lengths of a label: EXT2_LABEL_LEN and XFSLABEL_MAX. That of btrfs ends with a zero.
const (
	extLabelBytes = 16
	xfsLabelBytes = 12
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// mkfs is the command that makes the filesystem. No option forces it: each mkfs refuses a device
// that is mounted or held by somebody, and mkfs.xfs and mkfs.btrfs refuse what they take for
// content. mke2fs does not: it asks about what it finds, and only somebody at a terminal
// (misc/mke2fs.c: CHECK_FS_EXIST needs isatty), otherwise it overwrites it without a word. For
// ext4, what Format has seen is all that there is.
func mkfs(req FormatRequest) (hostexec.Command, error) {
	if err := requirePath(req.Device); err != nil {
		return hostexec.Command{}, err
	}
	if !uuidPattern.MatchString(req.UUID) {
		return hostexec.Command{}, fmt.Errorf("%w: %q is not a lower-case UUID", volume.ErrInvalid, req.UUID)
	}
	if err := CheckMkfsOptions(req.FSType, req.Options); err != nil {
		return hostexec.Command{}, err
	}
	c := hostexec.Command{Timeout: formatTimeout}
	switch req.FSType {
	case Ext4:
		c.Name = "mkfs.ext4"
		c.Args = []string{
			"-q",
			"-U", req.UUID,
			// Root has no use for a reserve on a volume of one application.
			"-m", "0",
			// Old configurations take 1 KiB for a small volume, which stays when it grows.
			"-b", "4096",
			// The device reads as zeroes where it matters. The kernel zeroes the inode
			// tables later; they are marked as unwritten and have checksums. The journal
			// is zeroed now: what an older ext4 left at the same place could be replayed.
			"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0",
		}
		if req.Label != "" {
			c.Args = append(c.Args, "-L", cut(req.Label, extLabelBytes))
		}
		if writesInodeTables(req.Options) {
			c.Timeout = tablesTimeout
		}
	case XFS:
		c.Name = "mkfs.xfs"
		c.Args = []string{"-q", "-K", "-m", "uuid=" + req.UUID}
		if req.Label != "" {
			c.Args = append(c.Args, "-L", cut(req.Label, xfsLabelBytes))
		}
	case Btrfs:
		c.Name = "mkfs.btrfs"
		c.Args = []string{"-q", "-K", "-U", req.UUID}
		if req.Label != "" {
			c.Args = append(c.Args, "-L", cut(req.Label, btrfsLabelBytes-1))
		}
	default:
		return hostexec.Command{}, fmt.Errorf("%w: unknown filesystem %q, known are %s", volume.ErrInvalid, req.FSType, strings.Join(fsTypes, ", "))
	}
	c.Args = append(withMkfsOptions(req.FSType, c.Args, req.Options), req.Device)
	return c, nil
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// requirePath refuses paths that a program could take for an option or that mean
// another place than they say.
func requirePath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%w: %q is not a clean absolute path", volume.ErrInvalid, path)
	}
	return nil
}

// tooSmall is what mkfs says when the device has no room for the filesystem; it has
// written nothing then. "Filesystem must be larger than 300MB." is mkfs.xfs since
// xfsprogs 5.19 (mkfs/xfs_mkfs.c, validate_supported).
var tooSmall = regexp.MustCompile(`(?i)must be larger than|too small for|not enough space to build|is too small`)

func classifyMkfs(err error) error {
	var exit *hostexec.ExitError
	if errors.As(err, &exit) && !exit.TimedOut && tooSmall.MatchString(exit.Stderr) {
		return fmt.Errorf("%w: the volume is too small for this filesystem: %w", volume.ErrInvalid, err)
	}
	return err
}
