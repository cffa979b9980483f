// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// parseInotify returns the file names in a buffer of inotify events (inotify(7)),
// and whether the queue overflowed.
func parseInotify(buffer []byte) (names []string, overflow bool) {
	for len(buffer) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(buffer[4:8])
		length := int(binary.NativeEndian.Uint32(buffer[12:16]))
		buffer = buffer[unix.SizeofInotifyEvent:]
		if length < 0 || length > len(buffer) {
			return names, true
		}
		if mask&unix.IN_Q_OVERFLOW != 0 {
			overflow = true
		}
		if name := string(bytes.TrimRight(buffer[:length], "\x00")); name != "" {
			names = append(names, name)
		}
		buffer = buffer[length:]
	}
	return names, overflow
}

// recordNumber returns "major:minor" of the name of a block device's record,
// "b<major>:<minor>", and whether it is one.
func recordNumber(name string) (string, bool) {
	number, found := strings.CutPrefix(name, "b")
	major, minor, colon := strings.Cut(number, ":")
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return number, found && colon && digits(major) && digits(minor)
}
