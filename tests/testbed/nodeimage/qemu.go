// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/guest"
)

// qemuPackage is the emulator that the nodes run in, of the nodes' own release and not of
// the machine's: every machine then runs the same one, and QEMU 10 emulates a node with a
// fifth to a quarter less work than the 7.2 of Debian 12.
const qemuPackage = "qemu-system-x86"

// qemuOptions unpack a package and what it depends on, and run nothing of it.
var qemuOptions = []string{
	"--variant=extract", "--include=" + qemuPackage,
	"--aptopt=APT::Install-Recommends \"false\"",
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
}

// QEMUKey identifies the unpacked emulator.
func QEMUKey() *artifact.Key {
	key := artifact.NewKey("qemu").Add("release", Release)
	for _, option := range qemuOptions {
		key.Add("option", option)
	}
	return key
}

// QEMU is the emulator that BuildQEMU has unpacked into dir.
func QEMU(dir string) guest.QEMU { return guest.QEMU{Root: filepath.Join(dir, "root")} }

// BuildQEMU unpacks the emulator into dir. Output goes to the log.
func BuildQEMU(ctx context.Context, dir string, log *os.File) error {
	return run(ctx, log, "mmdebstrap", append(slices.Clip(qemuOptions), Release, QEMU(dir).Root)...)
}
