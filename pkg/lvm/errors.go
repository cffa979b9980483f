// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// message is something that lvm says on stderr and what it means to us.
type message struct {
	pattern  *regexp.Regexp
	sentinel error
}

// ErrThinTransaction: lvm does not activate a thin pool, because the pool's own metadata are
// of another transaction than lvm expects: one of both is older than the other, as after a
// loss of power or a vgcfgrestore. It is a volume.ErrPoolUnavailable.
var ErrThinTransaction = fmt.Errorf("%w: lvm's metadata and those of the thin pool are of different transactions", volume.ErrPoolUnavailable)

// messages are searched in order; the first that matches counts. The comments
// name the file of lvm2 2.03.31 that prints them, and the test has a sample of
// each. What lvm says explains a failure; it never decides whether something was
// done: that is read from the report afterwards.
var messages = []message{
	// device_mapper/libdm-deptree.c: _node_send_messages.
	{regexp.MustCompile(`Thin pool \S+ \(\d+:\d+\) transaction_id is \d+, while expected \d+`), ErrThinTransaction},
	// lib/metadata/lv_manip.c: lvcreate, all extents counted.
	{regexp.MustCompile(`has insufficient free space \(\d+ extents\): \d+ required`), volume.ErrNoSpace},
	// lib/metadata/lv_manip.c: lvextend, and allocation with constraints.
	{regexp.MustCompile(`Insufficient free space: \d+ extents needed`), volume.ErrNoSpace},
	{regexp.MustCompile(`Insufficient suitable .*allocatable extents`), volume.ErrNoSpace},
	// tools/lvcreate.c: by the host's own lvm.conf (thin_pool_autoextend_threshold).
	{regexp.MustCompile(`free space in thin pool \S+ reached threshold`), volume.ErrNoSpace},
	// lib/format_text/format-text.c: the metadata area is full.
	{regexp.MustCompile(`metadata on .* too large for circular buffer`), volume.ErrNoSpace},
	// lib/metadata/lv_manip.c.
	{regexp.MustCompile(`Logical Volume "[^"]*" already exists in volume group`), volume.ErrExists},
	// tools/vgcreate.c and tools/toollib.c.
	{regexp.MustCompile(`A volume group called \S+ already exists`), volume.ErrExists},
	{regexp.MustCompile(`Physical volume '[^']*' is already in volume group`), volume.ErrExists},
	// lib/activate/activate.c: lv_check_not_in_use.
	{regexp.MustCompile(`Logical volume \S+ (is used by another device|contains a filesystem in use|in use)\.`), volume.ErrInUse},
	// lib/label/label.c: somebody has the device open with O_EXCL.
	{regexp.MustCompile(`Can't open \S+ exclusively`), volume.ErrInUse},
	// lib/device/dev-type.c: a prompt that nobody answered.
	{regexp.MustCompile(`signature detected on|existing signatures? left on the device|Aborted wiping of`), volume.ErrNotBlank},
	// lib/filters, through tools/toollib.c: pvcreate_each_device.
	{regexp.MustCompile(`Cannot use \S+: device is (partitioned|an md component|a multipath component)`), volume.ErrNotBlank},
	// tools/toollib.c: the device is not there, or the host's lvm.conf keeps it from us.
	{regexp.MustCompile(`Cannot use \S+: `), volume.ErrPoolUnavailable},
	// lib/metadata/metadata.c: vg_read and vg_write.
	{regexp.MustCompile(`Cannot change VG \S+ while PVs are missing`), volume.ErrPoolUnavailable},
	{regexp.MustCompile(`Cannot update volume group \S+ with duplicate PV devices`), volume.ErrPoolUnavailable},
	{regexp.MustCompile(`Cannot access VG \S+ with (system ID|lock type)`), volume.ErrPoolUnavailable},
	{regexp.MustCompile(`Volume group "?[^" ]+"? is exported`), volume.ErrPoolUnavailable},
	// tools/toollib.c and lib/metadata/metadata.c.
	{regexp.MustCompile(`Multiple VGs found with the same name`), volume.ErrPoolUnavailable},
	{regexp.MustCompile(`Volume group "[^"]+" not found`), volume.ErrPoolUnavailable},
	// lib/misc/lvm-file.c and locking/file_locking.c: another lvm holds the lock.
	{regexp.MustCompile(`Can't get lock for|Failed to lock`), volume.ErrBusy},
	// tools/pvmove.c: the devices that are named have no room apart from its other parts.
	{regexp.MustCompile(`Failed to convert pvmove LV to mirrored`), volume.ErrNoSpace},
	// lib/metadata/lv_manip.c: pvmove is moving it.
	{regexp.MustCompile(`Can't \S+ locked logical volume`), volume.ErrBusy},
	// tools/lvm.c built without a line editor: there is no command shell.
	{regexp.MustCompile(`Please supply an LVM command`), volume.ErrToolMissing},
}

// duplicatePV finds the warnings about a physical volume that is on two devices
// (lib/cache/lvmcache.c), as after a disk was cloned.
var duplicatePV = regexp.MustCompile(`WARNING: (?:PV (\S+) on \S+ was already found on|Not using device \S+ for PV (\S+)\.)`)

func duplicates(stderr []byte) map[string]bool {
	found := map[string]bool{}
	for _, m := range duplicatePV.FindAllSubmatch(stderr, -1) {
		found[string(m[1])+string(m[2])] = true
	}
	return found
}

// classify returns the sentinel that lvm's words stand for, or nil.
func classify(stderr []byte) error {
	for _, m := range messages {
		if m.pattern.Match(stderr) {
			return m.sentinel
		}
	}
	return nil
}

// explain makes an error of what lvm said: its sentinel, if the words are known,
// and the words. Those of a process that was killed stand for nothing: lvm that is interrupted while
// it looks for room says that there is none ("Failed to convert pvmove LV to mirrored").
func explain(stderr []byte, cause error) error {
	words := said(stderr)
	sentinel := classify(stderr)
	switch {
	case killed(cause):
		return cause
	case sentinel != nil && cause != nil:
		return fmt.Errorf("%w: lvm said %q: %w", sentinel, words, cause)
	case sentinel != nil:
		return fmt.Errorf("%w: lvm said %q", sentinel, words)
	case cause != nil:
		return cause
	case words != "":
		return fmt.Errorf("lvm said %q", words)
	}
	return fmt.Errorf("lvm did not do it and did not say why")
}

// killed reports whether an error is of a process that did not come to its own end.
func killed(err error) bool {
	exit, ok := errors.AsType[*hostexec.ExitError](err)
	return ok && (exit.TimedOut || exit.Stuck || exit.ExitCode < 0 || exit.Unwrap() != nil)
}

// said returns the last lines of stderr that are not mere warnings.
func said(stderr []byte) string {
	const most = 3
	var lines []string
	for _, line := range hostexec.Lines(stderr) {
		if !strings.HasPrefix(line, "WARNING:") && !strings.HasPrefix(strings.TrimSpace(line), "Run `") {
			lines = append(lines, line)
		}
	}
	if len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	return strings.Join(lines, "; ")
}
