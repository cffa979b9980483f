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
	if len(uuid) >= unix.DM_UUID_LEN || uuid == "" {
		return fmt.Errorf("remove device-mapper's device %q: %w: a UUID of %d bytes", uuid, volume.ErrInvalid, len(uuid))
	}
	file, err := c.open()
	if err != nil {
		return fmt.Errorf("remove device-mapper's device %s: %w", uuid, err)
	}
	defer file.Close()
	header := &unix.DmIoctl{}
	fillHeader(header, unix.SizeofDmIoctl)
	copy(header.Uuid[:], uuid)
	switch err := block.Ioctl(file, unix.DM_DEV_REMOVE, unsafe.Pointer(header)); {
	case errors.Is(err, unix.ENXIO):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove device-mapper's device %s: %w", uuid, volume.ErrInUse)
	case err != nil:
		return fmt.Errorf("remove device-mapper's device %s: %w", uuid, err)
	}
	return nil
}

// Resume lets a suspended device go on as it was: a table that was loaded and is not in
// use yet is dropped before. It returns nil when there is no such device, and for one that
// is not suspended.
func (c Control) Resume(uuid string) error {
	if len(uuid) >= unix.DM_UUID_LEN || uuid == "" {
		return fmt.Errorf("resume device-mapper's device %q: %w: a UUID of %d bytes", uuid, volume.ErrInvalid, len(uuid))
	}
	file, err := c.open()
	if err != nil {
		return fmt.Errorf("resume device-mapper's device %s: %w", uuid, err)
	}
	defer file.Close()
	// DM_DEV_SUSPEND without the flag resumes (do_resume in drivers/md/dm-ioctl.c).
	for _, request := range []uint{unix.DM_TABLE_CLEAR, unix.DM_DEV_SUSPEND} {
		header := &unix.DmIoctl{}
		fillHeader(header, unix.SizeofDmIoctl)
		copy(header.Uuid[:], uuid)
		if err := block.Ioctl(file, request, unsafe.Pointer(header)); err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("resume device-mapper's device %s: %w", uuid, err)
		}
	}
	return nil
}

func (c Control) ask(uuid string, flags uint32) ([]Target, error) {
	if len(uuid) >= unix.DM_UUID_LEN {
		return nil, fmt.Errorf("%w: a UUID of %d bytes", volume.ErrInvalid, len(uuid))
	}
	file, err := c.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c.withoutControl(err)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	buffer := make([]byte, bufferBytes)
	header := (*unix.DmIoctl)(unsafe.Pointer(&buffer[0]))
	fillHeader(header, len(buffer))
	header.Flags = flags
	copy(header.Uuid[:], uuid)
	switch err := block.Ioctl(file, unix.DM_TABLE_STATUS, unsafe.Pointer(&buffer[0])); {
	case errors.Is(err, unix.ENXIO):
		return nil, volume.ErrNotFound
	case err != nil:
		return nil, err
	}
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
