// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/device"
)

// Host is a machine with disks. Its methods are safe for concurrent use.
type Host struct {
	dir   string
	plug  func(file string) (path string, unplug func() error, err error)
	disks device.Opener

	mu    sync.Mutex
	slots []*slot
}

// slot is a disk, plugged in or not.
type slot struct {
	serial    string
	file      string
	sizeBytes int64
	path      string // empty when it is pulled
	unplug    func() error
}

// HostDisk is a disk as the kernel shows it.
type HostDisk struct {
	Serial    string
	Path      string
	SizeBytes int64
}

// NewLoopHost returns a host whose disks are loop devices of these sizes, blank,
// with the serials disk-0, disk-1 and so on. It skips the test when it is not run
// by root or the kernel has no loop devices.
func NewLoopHost(t testing.TB, sizesBytes ...int64) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	if _, err := os.Stat(loopControl); err != nil {
		t.Skipf("this machine has no loop devices: %v", err)
	}
	return newHost(t, &Host{dir: t.TempDir(), plug: attachLoop, disks: device.BlockOpener{}}, sizesBytes)
}

// NewFileHost returns a host whose disks are plain files. It needs no privilege.
func NewFileHost(t testing.TB, sizesBytes ...int64) *Host {
	t.Helper()
	dir := t.TempDir()
	links := 0
	// Plugging in is a link of a fresh name, as a kernel name is.
	plug := func(file string) (string, func() error, error) {
		links++
		path := filepath.Join(dir, fmt.Sprintf("dev%d", links))
		return path, func() error { return os.Remove(path) }, os.Link(file, path)
	}
	return newHost(t, &Host{dir: dir, plug: plug, disks: FileOpener{}}, sizesBytes)
}

func newHost(t testing.TB, h *Host, sizesBytes []int64) *Host {
	t.Helper()
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, s := range h.slots {
			if err := s.pull(); err != nil {
				t.Errorf("unplug %s: %v", s.file, err)
			}
		}
	})
	for i, size := range sizesBytes {
		h.Add(t, fmt.Sprintf("disk-%d", i), size)
	}
	return h
}

// Opener opens the host's disks.
func (h *Host) Opener() device.Opener { return h.disks }

// Disks returns what the kernel shows.
func (h *Host) Disks() []HostDisk {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []HostDisk
	for _, s := range h.slots {
		if s.path != "" {
			out = append(out, HostDisk{Serial: s.serial, Path: s.path, SizeBytes: s.sizeBytes})
		}
	}
	return out
}

// Add plugs a new, blank disk in. A serial that is there already makes a clone.
func (h *Host) Add(t testing.TB, serial string, sizeBytes int64) HostDisk {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &slot{serial: serial, sizeBytes: sizeBytes, file: filepath.Join(h.dir, fmt.Sprintf("disk%d.img", len(h.slots)))}
	f, err := os.Create(s.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.push(h.plug); err != nil {
		t.Fatal(err)
	}
	h.slots = append(h.slots, s)
	return HostDisk{Serial: serial, Path: s.path, SizeBytes: sizeBytes}
}

// Pull takes the disks of this serial away. Their content stays for Push.
func (h *Host) Pull(t testing.TB, serial string) {
	t.Helper()
	h.each(t, serial, (*slot).pull)
}

// WriteBehind puts a byte on the disks of this serial as hardware does, past what the kernel
// remembers of them.
func (h *Host) WriteBehind(t testing.TB, serial string, offset int64) {
	t.Helper()
	h.each(t, serial, func(s *slot) error {
		f, err := os.OpenFile(s.file, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{1}, offset)
		return errors.Join(err, f.Close())
	})
}

// Push puts the disks of this serial back, under whatever name is free.
func (h *Host) Push(t testing.TB, serial string) {
	t.Helper()
	h.each(t, serial, func(s *slot) error { return s.push(h.plug) })
}

// Shuffle gives every disk that is plugged in another name, as a reboot may.
func (h *Host) Shuffle(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var plugged []*slot
	for _, s := range h.slots {
		if s.path == "" {
			continue
		}
		plugged = append(plugged, s)
		if err := s.pull(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(plugged)
	for _, s := range plugged {
		if err := s.push(h.plug); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(h.slots)
}

func (h *Host) each(t testing.TB, serial string, do func(*slot) error) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.slots {
		if s.serial == serial {
			if err := do(s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (s *slot) pull() error {
	if s.path == "" {
		return nil
	}
	s.path = ""
	return s.unplug()
}

func (s *slot) push(plug func(string) (string, func() error, error)) (err error) {
	if s.path != "" {
		return nil
	}
	s.path, s.unplug, err = plug(s.file)
	if err != nil {
		s.path = ""
	}
	return err
}
