// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// InotifyEvent is one event of inotify(7).
type InotifyEvent struct {
	// Watch is the descriptor of the watch, as inotify_add_watch(2) returned it.
	Watch int32
	// Mask says what happened (unix.IN_CREATE and others).
	Mask uint32
	// Name of the file in the watched directory; empty for the directory itself.
	Name string
}

// ParseInotify returns the events in a buffer that was read from inotify(7), and whether
// some were lost: the queue overflowed, or the buffer ends within an event.
func ParseInotify(buffer []byte) (events []InotifyEvent, lost bool) {
	for len(buffer) >= unix.SizeofInotifyEvent {
		event := InotifyEvent{Watch: int32(binary.NativeEndian.Uint32(buffer[0:4])), Mask: binary.NativeEndian.Uint32(buffer[4:8])}
		length := int(binary.NativeEndian.Uint32(buffer[12:16]))
		buffer = buffer[unix.SizeofInotifyEvent:]
		if length < 0 || length > len(buffer) {
			return events, true
		}
		if event.Mask&unix.IN_Q_OVERFLOW != 0 {
			lost = true
		}
		event.Name = string(bytes.TrimRight(buffer[:length], "\x00"))
		events = append(events, event)
		buffer = buffer[length:]
	}
	return events, lost
}

// recordNumber returns "major:minor" of the name of a block device's record,
// "b<major>:<minor>", and whether it is one.
func recordNumber(name string) (string, bool) {
	number, found := strings.CutPrefix(name, "b")
	major, minor, colon := strings.Cut(number, ":")
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return number, found && colon && digits(major) && digits(minor)
}
