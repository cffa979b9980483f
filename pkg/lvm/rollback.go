// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// errCutShort: a device's header leads to half a text, and it cannot be put back.
var errCutShort = errors.New("a change of the metadata was cut short by a loss of power")

// DiskMetadata is the Metadata of devices that are seen under Root.
type DiskMetadata struct{ Root string }

var _ Metadata = DiskMetadata{}

// Headers implements Metadata.
func (m DiskMetadata) Headers(path, groupUUID string, seqno uint64) (headers []AreaHeader, err error) {
	f, err := os.OpenFile(filepath.Join(m.Root, path), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	pvUUID, offsets, err := readLabel(f)
	if err != nil {
		return nil, err
	}
	for _, offset := range offsets {
		a, err := readArea(f, offset)
		if err != nil {
			return nil, err
		}
		if !a.committed() {
			continue
		}
		text, whole, err := a.whole(f)
		if err != nil {
			return nil, err
		}
		if !whole {
			continue // lvm does without it
		}
		uuid, found, err := generationOf(text)
		if err != nil {
			return nil, err
		}
		if uuid != groupUUID || found != seqno {
			continue // it is behind, as after it was rolled back alone; lvm brings it up to date
		}
		headers = append(headers, AreaHeader{PVUUID: pvUUID, OffsetBytes: offset, Sector: a.header[:]})
	}
	return headers, nil
}

// is returns an error unless the area holds the whole text of that generation.
func (a *area) is(r io.ReaderAt, groupUUID string, seqno uint64) error {
	text, whole, err := a.whole(r)
	if err != nil {
		return err
	}
	if !whole {
		return errors.New("the metadata is damaged")
	}
	uuid, found, err := generationOf(text)
	if err != nil {
		return err
	}
	if uuid != groupUUID || found != seqno {
		return fmt.Errorf("the metadata is generation %d of volume group %s, not %d of %s", found, uuid, seqno, groupUUID)
	}
	return nil
}

// RollBack implements Metadata.
func (m DiskMetadata) RollBack(path, groupName string, to Generation) (changed bool, err error) {
	device := filepath.Join(m.Root, path)
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	back, err := wayBack(f, to)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if len(back) == 0 {
		return false, nil
	}
	if err := ValidateGroupName(groupName); err != nil {
		return false, err
	}
	unlock, err := lockGroup(m.Root, groupName)
	if err != nil {
		return false, fmt.Errorf("lock volume group %s: %w", groupName, err)
	}
	defer unlock()
	if err := putBack(device, back, to); err != nil {
		return false, fmt.Errorf("put the metadata on %s back to generation %d: %w", path, to.Seqno, err)
	}
	return true, nil
}

// wayBack returns the headers to put back on a device: for each that leads to half a
// text the one that is kept. Everything is read from the device and proven there; what
// is kept only says where to look.
func wayBack(r io.ReaderAt, to Generation) ([]AreaHeader, error) {
	pvUUID, offsets, err := readLabel(r)
	if err != nil {
		return nil, err
	}
	var back []AreaHeader
	for _, offset := range offsets {
		a, err := readArea(r, offset)
		if err != nil {
			return nil, err
		}
		if !a.committed() {
			continue
		}
		if _, whole, err := a.whole(r); whole || err != nil {
			if err != nil {
				return nil, err
			}
			continue
		}
		i := slices.IndexFunc(to.Headers, func(h AreaHeader) bool { return h.PVUUID == pvUUID && h.OffsetBytes == offset })
		if i < 0 || len(to.Headers[i].Sector) != mdaHeaderBytes {
			return nil, fmt.Errorf("%w, and what was before it was not kept", errCutShort)
		}
		before, err := parseArea([mdaHeaderBytes]byte(to.Headers[i].Sector), offset)
		if err != nil {
			return nil, fmt.Errorf("%w, and what was kept of what was before it: %w", errCutShort, err)
		}
		if !before.committed() || before.sizeBytes != a.sizeBytes {
			return nil, fmt.Errorf("%w, and what was kept is of another metadata area", errCutShort)
		}
		if err := before.is(r, to.GroupUUID, to.Seqno); err != nil {
			return nil, fmt.Errorf("%w, and what was before it is not there: %w", errCutShort, err)
		}
		if !to.Acting && before.next() != a.text {
			return nil, fmt.Errorf("%w; it is not one of Berth's, which knows the way back to generation %d only: other changes came between", errCutShort, to.Seqno)
		}
		back = append(back, to.Headers[i])
	}
	return back, nil
}

// putBack writes the headers, and reads them back. The device may have sectors larger
// than a header, so the kernel does the writing around it.
func putBack(device string, back []AreaHeader, to Generation) (err error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Under the lock: somebody may have been here.
	now, err := wayBack(f, to)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(now, back, func(a, b AreaHeader) bool {
		return a.OffsetBytes == b.OffsetBytes && bytes.Equal(a.Sector, b.Sector)
	}) {
		return fmt.Errorf("%w: somebody else changes it", volume.ErrBusy)
	}
	for _, h := range back {
		if _, err := f.WriteAt(h.Sector, h.OffsetBytes); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	for _, h := range back {
		a, err := readArea(f, h.OffsetBytes)
		if err != nil {
			return err
		}
		if err := a.is(f, to.GroupUUID, to.Seqno); err != nil {
			return err
		}
	}
	return nil
}

const (
	// lockDirectory is lvm's default for global/locking_dir.
	lockDirectory = "/run/lock/lvm"
	lockPatience  = 10 * time.Second
	lockInterval  = 50 * time.Millisecond
)

// lockGroup takes the lock that each command of lvm takes that changes the volume group
// (lib/misc/lvm-flock.c).
func lockGroup(root, groupName string) (unlock func(), err error) {
	dir := filepath.Join(root, lockDirectory)
	// lvm makes it at its first command.
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	path := filepath.Join(dir, "V_"+strings.ReplaceAll(groupName, "/", "_"))
	again := time.NewTicker(lockInterval)
	defer again.Stop()
	for deadline := time.Now().Add(lockPatience); ; <-again.C {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && stillThere(f, path) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w: a command of lvm holds it", volume.ErrBusy)
		}
	}
}

// stillThere is false for a file that the one who held the lock has removed.
func stillThere(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}
