// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import "path/filepath"

// QEMU is the emulator that runs guests.
type QEMU struct {
	// Root is the folder of an unpacked Debian package of it with its libraries; see
	// nodeimage.BuildQEMU. Empty means the machine's own.
	Root string
}

// Argv begins a command line of the emulator. It is run by the loader that it was
// unpacked with, for the machine may have another C library.
func (q QEMU) Argv() []string {
	if q.Root == "" {
		return []string{"qemu-system-x86_64"}
	}
	usr := filepath.Join(q.Root, "usr")
	return []string{
		filepath.Join(usr, "lib64", "ld-linux-x86-64.so.2"), "--library-path", filepath.Join(usr, "lib", "x86_64-linux-gnu"),
		filepath.Join(usr, "bin", "qemu-system-x86_64"),
		"-L", filepath.Join(usr, "share", "qemu"), "-L", filepath.Join(usr, "share", "seabios"),
	}
}
