// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
)

// hostPrograms are the programs that a testbed needs on this machine, with the
// Debian packages that hold them.
var hostPrograms = map[string]string{
	"go": "golang", "ip": "iproute2", "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap",
	"mkfs.ext4": "e2fsprogs", "xz": "xz-utils", "zstd": "zstd", "busybox": "busybox-static", "tar": "tar",
}

// CheckHost says what this machine lacks for a testbed.
func CheckHost() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("a testbed needs Linux on amd64, this is %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return errors.New("a testbed needs root: it makes a network namespace and tap devices")
	}
	var missing []string
	for program, debianPackage := range hostPrograms {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program+" (Debian package "+debianPackage+")")
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s. hack/install-packages.sh installs them", strings.Join(missing, ", "))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("no /dev/net/tun: the kernel lacks TUN/TAP, or its module is not loaded: %w", err)
	}
	return nil
}

// lookBusybox finds a busybox that needs no libraries.
func lookBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	file, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is not statically linked: install the Debian package busybox-static", path)
		}
	}
	return path, nil
}

// controlSequences are what a console's output has beside text: a terminal
// would do other things than show them.
var controlSequences = regexp.MustCompile(`\x1b(\[[0-9;?!]*[A-Za-z]|\][^\x07]*\x07|c)|\r`)

// Tail returns the last lines of a log, without control sequences.
func Tail(path string, lines int) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	content = bytes.TrimRight(controlSequences.ReplaceAll(content, nil), "\n")
	at := len(content)
	for ; lines > 0 && at >= 0; lines-- {
		at = bytes.LastIndexByte(content[:at], '\n')
	}
	return append(bytes.Clone(content[at+1:]), '\n')
}
