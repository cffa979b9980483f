// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Uevent is a message of the kernel about one device (kobject_uevent.c).
type Uevent struct {
	// Action is add, remove, change, move, online, offline, bind or unbind.
	Action string
	// DevPath is the device's directory in sysfs, "/devices/…".
	DevPath string
	// OldDevPath of a device that was renamed.
	OldDevPath string
	Subsystem  string
	// Major and Minor number, 0 if the device has none.
	Major, Minor uint32
	// Sequence grows with every event of the machine.
	Sequence uint64
}

// KernelName is the last element of the path.
func (u Uevent) KernelName() string { return path.Base(u.DevPath) }

var errNotUevent = errors.New("not a uevent of the kernel")

// ParseUevent reads a message: "action@devpath", then KEY=value, each ended by a
// NUL byte. What udevd sends to its own listeners begins with "libudev" and is
// refused, as is anything that contradicts itself.
func ParseUevent(message []byte) (Uevent, error) {
	parts := bytes.Split(bytes.TrimRight(message, "\x00"), []byte{0})
	action, devPath, found := strings.Cut(string(parts[0]), "@")
	if !found || action == "" || !strings.HasPrefix(devPath, "/") {
		return Uevent{}, fmt.Errorf("%w: it begins with %.32q", errNotUevent, parts[0])
	}
	event := Uevent{Action: action, DevPath: devPath}
	for _, part := range parts[1:] {
		key, value, found := strings.Cut(string(part), "=")
		if !found {
			continue
		}
		var err error
		switch key {
		case "ACTION":
			if value != action {
				err = errNotUevent
			}
		case "DEVPATH":
			if value != devPath {
				err = errNotUevent
			}
		case "DEVPATH_OLD":
			event.OldDevPath = value
		case "SUBSYSTEM":
			event.Subsystem = value
		case "MAJOR":
			event.Major, err = parse32(value)
		case "MINOR":
			event.Minor, err = parse32(value)
		case "SEQNUM":
			event.Sequence, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return Uevent{}, fmt.Errorf("uevent %s: %s=%.32q: %w", parts[0], key, value, err)
		}
	}
	return event, nil
}

func parse32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
