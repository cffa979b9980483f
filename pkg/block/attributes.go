// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes reads the files of one device's directory in sysfs. The first thing
// that should have been readable and was not is kept in err.
type attributes struct {
	sysfs     Sysfs
	root      string // of sysfs, without links
	directory string // of the device, without links
	udev      UdevRecord
	err       error
}

func (r *attributes) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// bytes returns the content of an attribute, nil if the device has none of that
// name. Drivers answer a question their device cannot answer with EINVAL,
// EOPNOTSUPP or ENXIO; that too is none.
func (r *attributes) bytes(name string) []byte {
	path := filepath.Join(r.directory, name)
	data, err := readAttribute(path)
	switch {
	case err == nil:
		return data
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENXIO):
		return nil
	}
	r.fail(fmt.Errorf("read %s of %s: %w", name, filepath.Base(r.directory), err))
	return nil
}

// readAttribute reads a small file by three system calls. os.ReadFile makes eight, most
// of them to ask the poller whether it can wait for a file of sysfs, and a device has
// some thirty attributes.
func readAttribute(path string) ([]byte, error) {
	fd, err := ignoringInterrupts(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var data []byte
	var page [4096]byte // of an attribute the kernel gives at most a page at a time
	for {
		n, err := ignoringInterrupts(func() (int, error) { return unix.Read(fd, page[:]) })
		if err != nil {
			return nil, err
		}
		data = append(data, page[:n]...)
		if n < len(page) {
			return data, nil
		}
	}
}

func ignoringInterrupts(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// text is an attribute without the spaces and NULs around it.
func (r *attributes) text(name string) string {
	return printable(r.bytes(name))
}

// printable keeps what may stand in an object and a terminal: valid UTF-8 without
// control characters, at most 256 bytes. Firmware is not bound by either.
func printable(data []byte) string {
	const limit = 256
	if i := bytes.IndexByte(data, 0); i >= 0 {
		data = data[:i]
	}
	s := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '\ufffd' {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(string(data), " "))
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:limit], ""))
	}
	return s
}

func (r *attributes) flag(name string) bool { return r.text(name) == "1" }

// number is an attribute that every device has.
func (r *attributes) number(name string) int64 {
	value := r.text(name)
	if value == "" {
		r.fail(fmt.Errorf("attribute %s of %s is missing", name, filepath.Base(r.directory)))
		return 0
	}
	return r.parse(name, value)
}

func (r *attributes) optionalNumber(name string) int64 {
	value := r.text(name)
	if value == "" {
		return 0
	}
	return r.parse(name, value)
}

func (r *attributes) majorMinor() (major, minor uint32) {
	value := r.text("dev")
	before, after, found := strings.Cut(value, ":")
	a, errA := strconv.ParseUint(before, 10, 32)
	b, errB := strconv.ParseUint(after, 10, 32)
	if !found || errA != nil || errB != nil {
		r.fail(fmt.Errorf("attribute dev of %s: %q is not major:minor", filepath.Base(r.directory), value))
		return 0, 0
	}
	return uint32(a), uint32(b)
}

// list is the names in a directory of links.
func (r *attributes) list(name string) []string {
	entries, err := os.ReadDir(filepath.Join(r.directory, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.fail(fmt.Errorf("list %s of %s: %w", name, filepath.Base(r.directory), err))
		}
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return names
}

// partitions are the directories below the device that have a partition number.
func (r *attributes) partitions() []string {
	entries, err := os.ReadDir(r.directory)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.fail(fmt.Errorf("list the partitions of %s: %w", filepath.Base(r.directory), err))
		}
		return nil
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), filepath.Base(r.directory)) {
			continue
		}
		if _, err := os.Stat(filepath.Join(r.directory, entry.Name(), "partition")); err == nil {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names
}

// uevent are the properties that the kernel itself would send.
func (r *attributes) uevent() map[string]string {
	properties := map[string]string{}
	for line := range strings.Lines(string(r.bytes("uevent"))) {
		if key, value, found := strings.Cut(strings.TrimSpace(line), "="); found {
			properties[key] = value
		}
	}
	return properties
}
