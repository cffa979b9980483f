// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Control is device-mapper's control file as it is seen under Root ("/" on the host
// itself).
type Control struct{ Root string }

// Target is one piece of a device's table, as the kernel shows it.
type Target struct {
	// StartSectors and LengthSectors are where in the device it is, in sectors of 512
	// bytes.
	StartSectors, LengthSectors uint64
	// Type of the target ("thin-pool", "raid").
	Type string
	// Status in the words of the target's own documentation.
	Status string
}

// The interface's version that is asked for: any kernel that knows this major version
// and is not older answers (check_version in drivers/md/dm-ioctl.c). 4.37 brought
// DM_DEV_ARM_POLL (Linux 4.14).
const (
	versionMajor = 4
	versionMinor = 37
)

// bufferBytes holds the status of every target that is asked for here, and of devices of
// hundreds of targets.
const bufferBytes = 64 << 10

// Status returns the status of each target of the device with that device-mapper UUID.
// What a thin pool would have to commit for exact numbers is not committed, so that
// the call does not wait for a pool that is out of space (DM_NOFLUSH_FLAG).
//
// volume.ErrNotFound: the kernel has no such device, or no device-mapper at all; that is
// proven, any other error says nothing.
func (c Control) Status(uuid string) ([]Target, error) {
	targets, err := c.ask(uuid, unix.DM_NOFLUSH_FLAG)
	if err != nil {
		return nil, fmt.Errorf("ask device-mapper for the status of %s: %w", uuid, err)
	}
	return targets, nil
}

// Table is Status with the parameters of each target in the place of its status.
func (c Control) Table(uuid string) ([]Target, error) {
	targets, err := c.ask(uuid, unix.DM_STATUS_TABLE_FLAG)
	if err != nil {
		return nil, fmt.Errorf("ask device-mapper for the table of %s: %w", uuid, err)
	}
	return targets, nil
}

// Remove removes the device with that UUID. What it lies on is not touched.
//
// volume.ErrInUse: somebody has it open, or another device lies on it. It returns nil
// when there is no such device.
func (c Control) Remove(uuid string) error {
	switch err := c.act(unix.DM_DEV_REMOVE, uuid, 0); {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove device-mapper's device %s: %w", uuid, volume.ErrInUse)
	case err != nil:
		return fmt.Errorf("remove device-mapper's device %s: %w", uuid, err)
	}
	return nil
}

// Suspend holds what is read from a device and written to it back until it is resumed, and
// waits for what is under way. A filesystem that is mounted from it is flushed and frozen
// before, which may take as long as its disk takes to write what is in memory. It returns
// nil for one that is suspended already.
//
// volume.ErrNotFound: the kernel has no such device.
func (c Control) Suspend(uuid string) error {
	// Without DM_SKIP_LOCKFS_FLAG and DM_NOFLUSH_FLAG (dm_suspend in drivers/md/dm.c).
	if err := c.act(unix.DM_DEV_SUSPEND, uuid, unix.DM_SUSPEND_FLAG); err != nil {
		return fmt.Errorf("suspend device-mapper's device %s: %w", uuid, err)
	}
	return nil
}

// Suspended reports whether the device is suspended.
//
// volume.ErrNotFound: the kernel has no such device.
func (c Control) Suspended(uuid string) (bool, error) {
	header, err := c.request(unix.DM_DEV_STATUS, uuid, 0)
	if err != nil {
		return false, fmt.Errorf("ask device-mapper whether %s is suspended: %w", uuid, err)
	}
	return header.Flags&unix.DM_SUSPEND_FLAG != 0, nil
}

// Resume lets a suspended device go on as it was: a table that was loaded and is not in
// use yet is dropped before. It returns nil when there is no such device, and for one that
// is not suspended. It waits for a Suspend that is under way.
func (c Control) Resume(uuid string) error {
	// DM_DEV_SUSPEND without the flag resumes (do_resume in drivers/md/dm-ioctl.c).
	for _, request := range []uint{unix.DM_TABLE_CLEAR, unix.DM_DEV_SUSPEND} {
		if err := c.act(request, uuid, 0); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return fmt.Errorf("resume device-mapper's device %s: %w", uuid, err)
		}
	}
	return nil
}

// Message sends a text to the target at the beginning of a device ("create_snap 2 1" to a
// thin pool, Documentation/admin-guide/device-mapper/thin-provisioning.rst). What it says
// is done, and committed, when it returns nil.
//
// volume.ErrNotFound: the kernel has no such device. The errors of the target stay as the
// kernel gives them.
func (c Control) Message(uuid, text string) error {
	if err := c.message(uuid, text); err != nil {
		return fmt.Errorf("send %q to device-mapper's device %s: %w", text, uuid, err)
	}
	return nil
}

func (c Control) message(uuid, text string) error {
	if strings.ContainsRune(text, 0) || text == "" {
		return fmt.Errorf("%w: no text", volume.ErrInvalid)
	}
	// struct dm_target_msg: the sector, and the text that ends with a zero byte.
	const sectorBytes = 8
	buffer := make([]byte, unix.SizeofDmIoctl+sectorBytes+len(text)+1)
	copy(buffer[unix.SizeofDmIoctl+sectorBytes:], text)
	return c.send(unix.DM_TARGET_MSG, uuid, 0, buffer)
}

// act makes a request that takes and returns nothing but its header.
func (c Control) act(request uint, uuid string, flags uint32) error {
	_, err := c.request(request, uuid, flags)
	return err
}

func (c Control) request(request uint, uuid string, flags uint32) (unix.DmIoctl, error) {
	buffer := make([]byte, unix.SizeofDmIoctl)
	err := c.send(request, uuid, flags, buffer)
	return *(*unix.DmIoctl)(unsafe.Pointer(&buffer[0])), err
}

// send makes a request about one device. The buffer has room for the header at its
// beginning, and gets what the kernel answers. volume.ErrNotFound: there is no such
// device.
func (c Control) send(request uint, uuid string, flags uint32, buffer []byte) error {
	if len(uuid) >= unix.DM_UUID_LEN || uuid == "" {
		return fmt.Errorf("%w: a UUID of %d bytes", volume.ErrInvalid, len(uuid))
	}
	file, err := c.open()
	if err != nil {
		return err
	}
	defer file.Close()
	header := (*unix.DmIoctl)(unsafe.Pointer(&buffer[0]))
	fillHeader(header, len(buffer))
	header.Flags = flags
	copy(header.Uuid[:], uuid)
	if err := block.Ioctl(file, request, unsafe.Pointer(&buffer[0])); errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: %w", volume.ErrNotFound, err)
	} else if err != nil {
		return err
	}
	return nil
}

func (c Control) ask(uuid string, flags uint32) ([]Target, error) {
	buffer := make([]byte, bufferBytes)
	if err := c.send(unix.DM_TABLE_STATUS, uuid, flags, buffer); errors.Is(err, fs.ErrNotExist) {
		return nil, c.withoutControl(err)
	} else if err != nil {
		return nil, err
	}
	header := (*unix.DmIoctl)(unsafe.Pointer(&buffer[0]))
	if header.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return nil, fmt.Errorf("the status of %d targets is longer than %d bytes", header.Target_count, len(buffer))
	}
	return parseTargets(buffer, int(header.Data_start), int(header.Target_count))
}

// withoutControl says what it means that the control file is not there: that there is no
// device, if sysfs is there and the kernel has no device-mapper; otherwise nothing.
func (c Control) withoutControl(cause error) error {
	classes := filepath.Join(c.Root, "/sys/class/misc")
	if _, err := os.Stat(classes); err != nil {
		return errors.Join(cause, err)
	}
	if _, err := os.Stat(filepath.Join(classes, "device-mapper")); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w: the kernel has no device-mapper: %w", volume.ErrNotFound, cause)
}

func fillHeader(header *unix.DmIoctl, size int) {
	header.Version = [3]uint32{versionMajor, versionMinor, 0}
	header.Data_size = uint32(size)
	header.Data_start = unix.SizeofDmIoctl
}

// parseTargets reads what DM_TABLE_STATUS has left in its buffer: for each target a
// dm_target_spec and a text that ends with a zero byte; next counts from the first one
// (retrieve_status in drivers/md/dm-ioctl.c).
func parseTargets(buffer []byte, start, count int) ([]Target, error) {
	if start < 0 || start > len(buffer) {
		return nil, fmt.Errorf("device-mapper's answer begins at byte %d of %d", start, len(buffer))
	}
	data := buffer[start:]
	var targets []Target
	for at := 0; count > 0; count-- {
		if at < 0 || at > len(data)-unix.SizeofDmTargetSpec {
			return nil, fmt.Errorf("device-mapper's answer ends within a target, at byte %d of %d", at, len(data))
		}
		spec := data[at : at+unix.SizeofDmTargetSpec]
		text, _, ended := bytes.Cut(data[at+unix.SizeofDmTargetSpec:], []byte{0})
		if !ended {
			return nil, errors.New("the status of a target has no end in device-mapper's answer")
		}
		kind, _, _ := bytes.Cut(spec[24:unix.SizeofDmTargetSpec], []byte{0})
		targets = append(targets, Target{
			StartSectors:  binary.NativeEndian.Uint64(spec[0:8]),
			LengthSectors: binary.NativeEndian.Uint64(spec[8:16]),
			Type:          string(kind),
			Status:        string(text),
		})
		next := int(binary.NativeEndian.Uint32(spec[20:24]))
		if count > 1 && next <= at {
			return nil, fmt.Errorf("device-mapper's answer goes from byte %d back to %d", at, next)
		}
		at = next
	}
	return targets, nil
}

func (c Control) open() (*os.File, error) {
	return os.OpenFile(filepath.Join(c.Root, "/dev/mapper", unix.DM_CONTROL_NODE), os.O_RDWR|unix.O_CLOEXEC, 0)
}
