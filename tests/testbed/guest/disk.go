// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Bus is how a disk is attached to a guest.
type Bus string

// The buses a disk can be attached to.
const (
	BusVirtio Bus = "virtio"
	BusNVMe   Bus = "nvme"
	BusSCSI   Bus = "scsi"
)

// Class says what a disk is for.
type Class string

// The classes of disks.
const (
	// ClassRoot holds the node's operating system.
	ClassRoot Class = "root"
	// ClassData is blank and Berth's to use.
	ClassData Class = "data"
	// ClassForeign holds somebody else's data, which nobody may write.
	ClassForeign Class = "foreign"
)

// Disk is one disk of a guest: an image file and how it is attached.
type Disk struct {
	// Serial is what the guest reads as the disk's serial number, at most 20
	// bytes (the limit of virtio-blk, VIRTIO_BLK_ID_BYTES). It is unique
	// within the guest and names the disk everywhere.
	Serial string `json:"serial"`
	// Reports is what the guest reads as the serial number where that is not Serial: a
	// clone says that it is another disk.
	Reports string `json:"reports,omitempty"`
	// ReadOnly is a disk that refuses writes. FailReads and FailWrites are one that
	// answers them with an I/O error.
	ReadOnly   bool  `json:"readOnly,omitempty"`
	FailReads  bool  `json:"failReads,omitempty"`
	FailWrites bool  `json:"failWrites,omitempty"`
	Class      Class `json:"class"`
	Bus        Bus   `json:"bus"`
	// WWN is the world wide name of a SCSI disk, 0 for none.
	WWN       uint64 `json:"wwn,omitempty"`
	SizeBytes int64  `json:"sizeBytes"`
	// Image is the image's file, relative to the guest's folder.
	Image string `json:"image"`
	// Backing is the read-only image under a root disk's, absolute.
	Backing string `json:"backing,omitempty"`
}

// maxSerialLength is VIRTIO_BLK_ID_BYTES of the Virtio specification; NVMe
// allows 20 as well.
const maxSerialLength = 20

// Validate says what is wrong with a disk.
func (d Disk) Validate() error {
	for _, serial := range []string{d.Serial, cmp.Or(d.Reports, d.Serial)} {
		if serial == "" || len(serial) > maxSerialLength || strings.Trim(serial, serialAlphabet) != "" {
			return fmt.Errorf("serial %q: want 1 to %d of A-Z, 0-9 and dash", serial, maxSerialLength)
		}
	}
	if d.SizeBytes <= 0 || d.SizeBytes%512 != 0 {
		return fmt.Errorf("disk %s: size %d is not a positive multiple of 512 bytes", d.Serial, d.SizeBytes)
	}
	switch d.Bus {
	case BusVirtio, BusNVMe, BusSCSI:
	default:
		return fmt.Errorf("disk %s: unknown bus %q: want virtio, nvme or scsi", d.Serial, d.Bus)
	}
	if d.WWN != 0 && d.Bus != BusSCSI {
		return fmt.Errorf("disk %s: only a SCSI disk has a WWN", d.Serial)
	}
	return nil
}

const serialAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"

// nodeName is the name of the disk's block node in QEMU, id that of its device.
func (d Disk) nodeName() string { return "blk-" + strings.ToLower(d.Serial) }
func (d Disk) id() string       { return "dev-" + strings.ToLower(d.Serial) }

// format of the disk's image. Only foreign disks are compared from outside the guest,
// so only they are raw. The others must not take room for what a guest overwrites
// with zeros: a raw file does, for a guest that asks for zeros (REQ_OP_WRITE_ZEROES
// without unmap, which BLKZEROOUT is) gets blocks of its own in it. A wiped disk of
// 10 GiB would fill 10 GiB of the machine.
func (d Disk) format() string {
	if d.Class == ClassForeign {
		return "raw"
	}
	return "qcow2"
}

// ImageSizeBytes is the size of the disk that an image in the guest's folder holds.
// fs.ErrNotExist: there is none.
func (d Disk) ImageSizeBytes(ctx context.Context, dir string) (int64, error) {
	path := filepath.Join(dir, d.Image)
	if _, err := os.Stat(path); err != nil {
		return 0, err
	}
	// A running guest has the image locked.
	var complaint bytes.Buffer
	command := exec.CommandContext(ctx, "qemu-img", "info", "--force-share", "--output=json", "-f", d.format(), path)
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("look at the image of %s: %w: %s", d.Serial, err, complaint.Bytes())
	}
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("look at the image of %s: %w", d.Serial, err)
	}
	return info.VirtualSize, nil
}

// Create makes the disk's image in the guest's folder: an overlay of its
// backing file, or nothing but zeros. An image that exists is left as it is.
func (d Disk) Create(ctx context.Context, dir string) error {
	if err := d.Validate(); err != nil {
		return err
	}
	path := filepath.Join(dir, d.Image)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	argv := []string{"create", "-q", "-f", d.format()}
	if d.Backing != "" {
		argv = append(argv, "-b", d.Backing, "-F", "raw", path)
	} else {
		argv = append(argv, path, strconv.FormatInt(d.SizeBytes, 10))
	}
	if out, err := exec.CommandContext(ctx, "qemu-img", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("create image of %s: %w: %s", d.Serial, err, out)
	}
	return nil
}

// blockdev describes the disk's block node. What is discarded takes no room in the
// image. A qcow2 image has a volatile write cache, as disks have: QEMU writes where in
// the file new data are when the guest flushes the disk, so that what the guest did not
// flush is lost with its power. Flushes go no further than the machine's page cache: the
// machine's losing its power is not tested here.
func (d Disk) blockdev() map[string]any {
	file := map[string]any{
		"driver": "file", "filename": d.Image, "discard": "unmap",
		"cache": map[string]any{"direct": false, "no-flush": true},
	}
	node := map[string]any{
		"driver": d.format(), "file": file,
		"cache": map[string]any{"direct": false, "no-flush": true},
	}
	if d.ReadOnly {
		node["read-only"] = true
	} else {
		node["discard"], node["detect-zeroes"] = "unmap", "unmap"
	}
	if faults := d.faults(); len(faults) > 0 {
		node = map[string]any{"driver": "blkdebug", "image": node, "inject-error": faults, "discard": "unmap"}
	}
	node["node-name"] = d.nodeName()
	return node
}

// faults are the rules of QEMU's blkdebug (docs/devel/testing/blkdebug.rst) that make
// requests fail from the beginning and for ever.
func (d Disk) faults() []map[string]any {
	const eio = 5
	var faults []map[string]any
	fail := func(wanted bool, types ...string) {
		for _, ioType := range types {
			if wanted {
				faults = append(faults, map[string]any{"event": "none", "iotype": ioType, "errno": eio, "once": false})
			}
		}
	}
	fail(d.FailReads, "read")
	fail(d.FailWrites, "write", "write-zeroes", "discard")
	return faults
}

// device describes the disk's device; bus is where it is plugged in, empty for
// the default.
func (d Disk) device(bus string) map[string]any {
	device := map[string]any{"id": d.id(), "drive": d.nodeName(), "serial": cmp.Or(d.Reports, d.Serial)}
	switch d.Bus {
	case BusNVMe:
		device["driver"] = "nvme"
	case BusSCSI:
		device["driver"] = "scsi-hd"
		bus = scsiController + ".0"
		if d.WWN != 0 {
			device["wwn"] = d.WWN
		}
	default:
		device["driver"] = "virtio-blk-pci"
	}
	if bus != "" {
		device["bus"] = bus
	}
	return device
}
