// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Sysfs reads what the kernel and udev of one host say of its block devices. It
// opens no device.
type Sysfs struct {
	// Root is where sysfs is mounted, "/sys" when empty. Tests give a tree of files.
	Root string
	// HostRoot is where the host's files are seen, "/" when empty: udev's records
	// are read from HostRoot/run/udev/data, its links from HostRoot/dev.
	HostRoot string
}

func (s Sysfs) root() string {
	if s.Root == "" {
		return "/sys"
	}
	return s.Root
}

// hostPath is where this process sees a path of the host.
func (s Sysfs) hostPath(path string) string { return filepath.Join("/", s.HostRoot, path) }

// Node is where this process sees the device node of a device.
func (s Sysfs) Node(d *Device) string { return s.hostPath(d.Path) }

// UdevDirectory is where this process sees udev's records.
func (s Sysfs) UdevDirectory() string { return s.hostPath("/run/udev/data") }

// Devices returns every block device, partitions and hidden ones too, sorted by
// kernel name. The list is complete or there is an error: a device that vanishes
// while it is read is left out, for it is gone; one that cannot be read is in the
// list, with Err set.
func (s Sysfs) Devices(ctx context.Context) ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(s.root(), "class/block"))
	if err != nil {
		return nil, fmt.Errorf("list the block devices: %w", err)
	}
	devices := make([]Device, 0, len(entries))
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list the block devices: %w", err)
		}
		device, err := s.Device(ctx, entry.Name())
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, device)
	}
	slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(a.KernelName, b.KernelName) })
	return devices, nil
}

// rereads bounds how often a device is read again that is exchanged for another
// while it is read.
const rereads = 3

// Device reads one device by its kernel name. volume.ErrNotFound: the kernel does
// not show it (any more).
func (s Sysfs) Device(ctx context.Context, kernelName string) (Device, error) {
	if kernelName == "" || strings.ContainsRune(kernelName, '/') || kernelName[0] == '.' {
		return Device{}, fmt.Errorf("device %q: not a kernel name: %w", kernelName, volume.ErrInvalid)
	}
	for range rereads {
		if err := ctx.Err(); err != nil {
			return Device{}, err
		}
		reader, err := s.reader(kernelName)
		if err != nil {
			return Device{}, err
		}
		before := reader.text("diskseq")
		device := reader.device(kernelName)
		if again, err := s.reader(kernelName); err != nil {
			return Device{}, err
		} else if again.directory != reader.directory || again.text("diskseq") != before {
			continue // another disk has taken the name: nothing of the two may be mixed
		}
		return device, nil
	}
	return Device{}, fmt.Errorf("device %s is being replaced all the time: %w", kernelName, volume.ErrBusy)
}

// Holders returns the kernel names of the devices that stand on a device, nil if there
// are none. volume.ErrNotFound: the kernel does not show the device (any more).
func (s Sysfs) Holders(ctx context.Context, kernelName string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reader, err := s.reader(kernelName)
	if err != nil {
		return nil, err
	}
	holders := reader.list("holders")
	if reader.err != nil {
		return nil, fmt.Errorf("device %s: %w", kernelName, reader.err)
	}
	return holders, nil
}

// openVolume is the device-mapper UUID of an encrypted volume that is open: cryptsetup makes
// it of the UUID of the header and the name, which package luks makes of the volume's ID.
var openVolume = regexp.MustCompile(`^CRYPT-LUKS2-[0-9a-f]{32}-berth-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// madeForVolumes tells by the prefix that lvm2 gives its devices' UUIDs, and by what an open
// encrypted volume is called; "" for any other device.
func (r *attributes) madeForVolumes(kernelName string) DeviceType {
	if !strings.HasPrefix(kernelName, "dm-") {
		return ""
	}
	switch uuid := r.text("dm/uuid"); {
	case strings.HasPrefix(uuid, lvmUUIDPrefix):
		return TypeLVM
	case openVolume.MatchString(uuid):
		return TypeVolume
	}
	return ""
}

// reader finds the directory of a device, to which the class directory links.
func (s Sysfs) reader(kernelName string) (*attributes, error) {
	class := filepath.Join(s.root(), "class/block")
	target, err := os.Readlink(filepath.Join(class, kernelName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("device %s: the kernel does not show it: %w", kernelName, volume.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", kernelName, err)
	}
	return &attributes{sysfs: s, root: filepath.Clean(s.root()), directory: filepath.Join(class, target)}, nil
}

func (r *attributes) device(kernelName string) Device {
	path := strings.TrimPrefix(r.directory, r.root)
	d := Device{
		KernelName:         kernelName,
		Path:               "/dev/" + strings.ReplaceAll(kernelName, "!", "/"),
		SysfsPath:          path,
		VirtualBlockDevice: strings.HasPrefix(path, "/devices/virtual/block/"),
		Hidden:             r.flag("hidden"),
		ReadOnly:           r.flag("ro"),
		Holders:            r.list("holders"),
		Slaves:             r.list("slaves"),
	}
	whole := r
	if number := r.text("partition"); number != "" {
		d.Type = TypePartition
		d.PartitionNumber = int(r.parse("partition", number))
		whole = &attributes{sysfs: r.sysfs, root: r.root, directory: filepath.Dir(r.directory)}
		d.Parent = filepath.Base(whole.directory)
	} else {
		d.Partitions = r.partitions()
	}
	d.SizeBytes = r.number("size") * 512
	if kind := r.madeForVolumes(kernelName); kind != "" {
		// It is no disk for anybody: what counts is what it stands on and who uses it. A
		// node has hundreds of them, each of which changes a few times while it is made.
		d.Type = kind
		d.DMName, d.DMUUID = r.text("dm/name"), r.text("dm/uuid")
		d.DiskSeq = uint64(r.optionalNumber("diskseq"))
		d.Major, d.Minor = r.majorMinor()
		d.Err = r.err
		return d
	}
	d.DiskSeq = uint64(whole.optionalNumber("diskseq"))
	d.Removable = whole.flag("removable")
	d.Rotational = whole.flag("queue/rotational")
	d.Zoned = whole.text("queue/zoned")
	d.LogicalBlockSizeBytes = whole.optionalNumber("queue/logical_block_size")
	d.PhysicalBlockSizeBytes = whole.optionalNumber("queue/physical_block_size")
	if !d.Hidden {
		d.Major, d.Minor = r.majorMinor()
	}
	r.readUdev(&d)
	if d.Type != TypePartition {
		r.readHardware(&d)
	}
	d.Err = errors.Join(r.err, udevErr(whole, r))
	return d
}

func udevErr(whole, r *attributes) error {
	if whole == r {
		return nil
	}
	return whole.err
}

// readUdev takes over what udev has noted. Only links that lead to this very
// device are kept: of two devices that claim one link udev lets one have it. A record
// is found by the device's number, and may still be of the disk that had it before.
func (r *attributes) readUdev(d *Device) {
	if d.Hidden {
		return
	}
	record, err := readUdevRecord(r.sysfs.UdevDirectory(), d.Major, d.Minor)
	if err != nil {
		r.fail(err)
		return
	}
	if seq, found := record.diskSeq(); found && d.DiskSeq != 0 && seq != d.DiskSeq {
		record = UdevRecord{}
	}
	d.UdevInitialized = record.Initialized
	d.UdevContent = record.content()
	d.PartitionUUID = record.Properties["ID_PART_ENTRY_UUID"]
	if d.PartitionUUID == "" {
		d.PartitionUUID = r.uevent()["PARTUUID"] // since Linux 6.9
	}
	d.MDUUID = record.Properties["MD_UUID"]
	r.udev = record
	for _, link := range record.Links {
		path := filepath.Join("/dev", link)
		target, err := os.Readlink(r.sysfs.hostPath(path))
		if err == nil && filepath.Join(filepath.Dir(path), target) == d.Path {
			d.Links = append(d.Links, path)
		}
	}
	slices.Sort(d.Links)
	d.Links = slices.Compact(d.Links)
}

// parse turns a decimal attribute into a number.
func (r *attributes) parse(name, value string) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n > 1<<53 {
		r.fail(fmt.Errorf("attribute %s of %s: %q is not a number", name, filepath.Base(r.directory), value))
		return 0
	}
	return n
}
