// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// The schemes of identity, the strongest first.
const (
	SchemeNGUID    = "nguid"
	SchemeEUI64    = "eui64"
	SchemeWWN      = "wwn"
	SchemeSerial   = "serial"
	SchemeDMUUID   = "dm-uuid"
	SchemeMDUUID   = "md-uuid"
	SchemePartUUID = "partuuid"
	SchemeLoopFile = "loop-file"
	SchemeByPath   = "by-path"
)

// Identity is the evidence by which a device is known again.
type Identity struct {
	// Scheme is one of the constants above.
	Scheme string
	// Value under that scheme.
	Value string
	// Weak is true when only the place of the device is known, not the device.
	Weak bool
}

// Zero reports whether there is no evidence at all.
func (i Identity) Zero() bool { return i.Value == "" }

// String is for messages: "serial QEMU_X1".
func (i Identity) String() string {
	if i.Zero() {
		return "no identity"
	}
	return i.Scheme + " " + i.Value
}

// Worldwide reports whether no two disks of the world should have the identity.
// Serial numbers are not: those that a hypervisor invents are the same on each of
// its machines.
func (i Identity) Worldwide() bool {
	switch i.Scheme {
	case SchemeNGUID, SchemeEUI64, SchemeWWN:
		return true
	case SchemeDMUUID:
		return strings.HasPrefix(i.Value, "mpath-")
	}
	return false
}

// Identify returns the strongest identity that a whole device has. What hardware
// reports counts for more than what is written on the disk; values that many
// devices share because nobody filled them in are passed over. A partition needs
// its disk: see IdentifyPartition.
func Identify(d *Device) Identity {
	serial := genuine(d.Serial)
	switch {
	case genuine(d.NGUID) != "":
		return Identity{Scheme: SchemeNGUID, Value: joined(normalHex(d.NGUID), d.NamespaceID)}
	case genuine(d.EUI64) != "":
		return Identity{Scheme: SchemeEUI64, Value: joined(normalHex(d.EUI64), d.NamespaceID)}
	case genuine(d.WWN) != "":
		return Identity{Scheme: SchemeWWN, Value: joined(strings.ToLower(d.WWN), serial)}
	case serial != "":
		return Identity{Scheme: SchemeSerial, Value: joined(d.Vendor, d.Model, serial, d.NamespaceID)}
	case d.DMUUID != "":
		return Identity{Scheme: SchemeDMUUID, Value: d.DMUUID}
	case genuine(d.MDUUID) != "":
		return Identity{Scheme: SchemeMDUUID, Value: normalHex(d.MDUUID)}
	case d.LoopBackingFile != "":
		return Identity{Scheme: SchemeLoopFile, Value: d.LoopBackingFile + "@" + strconv.FormatInt(d.LoopOffsetBytes, 10)}
	}
	return placeOf(d)
}

// IdentifyPartition returns the identity of a partition: its partition UUID, or
// its number on a disk that has an identity.
func IdentifyPartition(partition, disk *Device) Identity {
	if uuid := genuine(partition.PartitionUUID); uuid != "" {
		return Identity{Scheme: SchemePartUUID, Value: strings.ToLower(uuid)}
	}
	identity := Identify(disk)
	if identity.Zero() {
		return identity
	}
	identity.Value = fmt.Sprintf("%s-part%d", identity.Value, partition.PartitionNumber)
	return identity
}

// MayChange reports whether the identity that a device has now can be another one when udev has
// finished with it: udev may know a serial number, a WWN, a vendor or the UUID of a partition that
// the kernel does not. What the kernel itself says first is left as it is.
func MayChange(d *Device, identity Identity) bool {
	if d.UdevInitialized {
		return false
	}
	switch identity.Scheme {
	case SchemeNGUID, SchemeEUI64, SchemeWWN:
		return d.Type == TypePartition || identity.Scheme == SchemeWWN && genuine(d.Serial) == ""
	case SchemeDMUUID, SchemeMDUUID, SchemeLoopFile, SchemePartUUID:
		return d.Type == TypePartition && identity.Scheme != SchemePartUUID
	}
	return true
}

// placeOf names the slot, not the disk: what is in it may be another one after
// the next boot.
func placeOf(d *Device) Identity {
	place := strings.TrimPrefix(d.LinkUnder("/dev/disk/by-path/"), "/dev/disk/by-path/")
	if place == "" {
		// The sysfs path up to the driver's own numbering: "/devices/…/virtio3/block/vdb".
		before, _, found := strings.Cut(d.SysfsPath, "/block/")
		if !found || d.VirtualBlockDevice {
			before = d.SysfsPath
		}
		place = before
	}
	return Identity{Scheme: SchemeByPath, Value: place, Weak: true}
}

// Name is the name of a device's object: a hash of the node and the identity. The
// node is part of it, so that one disk seen by two nodes, or moved from one to the
// other, is never one object.
func Name(node string, identity Identity) string {
	sum := sha256.Sum256([]byte(node + "\x00" + identity.Scheme + "\x00" + identity.Value))
	return "bd-" + hex.EncodeToString(sum[:16])
}

// placeholders are serial numbers seen on devices that have none of their own.
var placeholders = map[string]bool{
	"none": true, "n/a": true, "na": true, "null": true, "unknown": true, "default": true, "default string": true,
	"not specified": true, "not available": true, "to be filled by o.e.m.": true, "system serial number": true,
	"serial": true, "serialnumber": true, "0123456789": true, "123456789": true, "1234567890": true,
	"0123456789abcdef": true, "1234567890abcdef": true, "123456789abcdef": true, "012345678912": true,
	"123456789012": true, "dd56419883891": true, "000000000001": true,
}

// genuine returns a reported value, or "" when it tells nothing: nothing but
// zeroes and separators, one digit over and over ("ffffffff"), or a placeholder.
func genuine(value string) string {
	lower := strings.ToLower(strings.TrimSpace(value))
	if placeholders[lower] {
		return ""
	}
	bare := lower
	for _, prefix := range []string{"naa.", "eui.", "uuid.", "0x"} {
		bare = strings.TrimPrefix(bare, prefix)
	}
	bare = strings.Map(func(r rune) rune {
		if r == '-' || r == ':' || r == '_' || r == '.' || r == ' ' {
			return -1
		}
		return r
	}, bare)
	if strings.Trim(bare, "0") == "" {
		return ""
	}
	if len(bare) >= 4 && strings.Trim(bare, bare[:1]) == "" {
		return ""
	}
	return strings.TrimSpace(value)
}

// normalHex brings the spellings of one number together: "0025-385B" and
// "00 25 38 5b" are the same.
func normalHex(value string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ':' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToLower(value))
}

// joined puts the parts that are known together.
func joined(parts ...string) string {
	var known []string
	for _, part := range parts {
		if part = strings.Join(strings.Fields(part), " "); part != "" {
			known = append(known, part)
		}
	}
	return strings.Join(known, "_")
}
