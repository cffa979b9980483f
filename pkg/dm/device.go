// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Device is what the kernel says of one of device-mapper's devices.
type Device struct {
	Name, UUID   string
	Major, Minor uint32
	// OpenCount is how often it is open, mounts and devices on it included.
	OpenCount int
	// Active is false for a device that was made and got no table: who made it was killed
	// in between.
	Active bool
	// Suspended: reads and writes wait until somebody resumes it.
	Suspended bool
}

// Device returns the device of that name.
//
// volume.ErrNotFound: the kernel has no such device, or no device-mapper at all; that is
// proven, any other error says nothing.
func (c Control) Device(name string) (Device, error) {
	d, err := c.device(name)
	if err != nil {
		return Device{}, fmt.Errorf("ask device-mapper for the device %s: %w", name, err)
	}
	return d, nil
}

func (c Control) device(name string) (Device, error) {
	if len(name) >= unix.DM_NAME_LEN || name == "" {
		return Device{}, fmt.Errorf("%w: a name of %d bytes", volume.ErrInvalid, len(name))
	}
	file, err := c.open()
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, c.withoutControl(err)
	}
	if err != nil {
		return Device{}, err
	}
	defer file.Close()
	header := &unix.DmIoctl{}
	fillHeader(header, unix.SizeofDmIoctl)
	copy(header.Name[:], name)
	switch err := block.Ioctl(file, unix.DM_DEV_STATUS, unsafe.Pointer(header)); {
	case errors.Is(err, unix.ENXIO):
		return Device{}, volume.ErrNotFound
	case err != nil:
		return Device{}, err
	}
	return parseDevice(header), nil
}

// parseDevice reads what __dev_status in drivers/md/dm-ioctl.c fills in.
func parseDevice(header *unix.DmIoctl) Device {
	return Device{
		Name: text(header.Name[:]), UUID: text(header.Uuid[:]),
		Major: unix.Major(header.Dev), Minor: unix.Minor(header.Dev),
		OpenCount: int(header.Open_count),
		Active:    header.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Suspended: header.Flags&unix.DM_SUSPEND_FLAG != 0,
	}
}

func text(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return string(before)
}
