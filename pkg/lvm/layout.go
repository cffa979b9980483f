// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/pkg/volume"
)

// Layout is how the volumes of a group lie over its devices.
type Layout string

const (
	// LayoutLinear fills one device after the other.
	LayoutLinear Layout = "linear"
	// LayoutStriped spreads each volume, in pieces of 64 KiB, over as many devices as
	// have room for their share: two at least.
	LayoutStriped Layout = "striped"
	// LayoutMirror keeps each volume twice, on two devices (raid1).
	LayoutMirror Layout = "mirror"
	// LayoutRAID5 is LayoutStriped with parity worth one device: three devices at least.
	LayoutRAID5 Layout = "raid5"
	// LayoutRAID6 is the same with parity worth two: five devices at least.
	LayoutRAID6 Layout = "raid6"
	// LayoutRAID10 is LayoutStriped over pairs of devices that hold the same: four devices
	// at least.
	LayoutRAID10 Layout = "raid10"
)

// shape is what a layout makes of devices.
type shape struct {
	// kind is what lvcreate calls it, and layout what lvm's report says of such a volume.
	kind   string
	layout []string
	// least devices, most of them (0: any number), and a multiple of step.
	least, most, step int64
	// data is how many of so many devices' shares hold data.
	data func(devices int64) int64
	// redundant: the loss of a device costs nothing; survives is of how many, whichever they
	// are.
	redundant bool
	survives  int
	// flags of lvcreate for so many devices with data.
	flags func(data string) []string
}

// stripeSize is the length of one piece: what lvm takes by itself, whatever the host's
// lvm.conf says.
const stripeSize = "64k"

func stripes(data string) []string { return []string{"--stripes", data, "--stripesize", stripeSize} }

// The least numbers of devices are lvm's (lvmraid(7)).
var shapes = map[Layout]shape{
	LayoutLinear: {kind: "linear", layout: []string{"linear"}, least: 1},
	LayoutStriped: {
		kind: "striped", layout: []string{"striped"}, least: 2, step: 1, flags: stripes,
		data: func(devices int64) int64 { return devices },
	},
	LayoutMirror: {
		kind: "raid1", layout: []string{"raid", "raid1"}, least: 2, most: 2, step: 1, redundant: true, survives: 1,
		data:  func(int64) int64 { return 1 },
		flags: func(string) []string { return []string{"--mirrors", "1"} },
	},
	LayoutRAID5: {
		kind: "raid5", layout: []string{"raid", "raid5", "raid5_ls"}, least: 3, step: 1, redundant: true, survives: 1, flags: stripes,
		data: func(devices int64) int64 { return devices - 1 },
	},
	LayoutRAID6: {
		kind: "raid6", layout: []string{"raid", "raid6", "raid6_zr"}, least: 5, step: 1, redundant: true, survives: 2, flags: stripes,
		data: func(devices int64) int64 { return devices - 2 }, //nolint:mnd // P and Q
	},
	LayoutRAID10: {
		kind: "raid10", layout: []string{"raid", "raid10"}, least: 4, step: 2, redundant: true, survives: 1,
		data:  func(devices int64) int64 { return devices / 2 }, //nolint:mnd // pairs
		flags: func(data string) []string { return append(stripes(data), "--mirrors", "1") },
	},
}

// MinDevices is how many devices a group needs for volumes of the layout.
func (l Layout) MinDevices() int { return int(max(1, shapes[l].least)) }

// Redundant reports whether volumes of the layout outlive the loss of a device.
func (l Layout) Redundant() bool { return shapes[l].redundant }

// Check returns volume.ErrInvalid for a layout that is not known.
func (l Layout) Check() error {
	if _, known := shapes[l]; !known {
		return fmt.Errorf("%w: layout %q is unknown", volume.ErrInvalid, l)
	}
	return nil
}

// layoutOf returns the layout that lvm's report says of a volume; "" for another one.
func layoutOf(lv *LogicalVolume) Layout {
	for name, s := range shapes {
		if slices.Equal(s.layout, lv.Layout) {
			return name
		}
	}
	return ""
}

// spreads reports whether a volume lies on several devices at once.
func (s shape) spreads() bool { return s.data != nil }

// fits reports whether a volume can lie on so many devices.
func (s shape) fits(devices int64) bool {
	return devices >= s.least && (s.most == 0 || devices <= s.most) && devices%s.step == 0
}

// overhead is how many extents each device of a volume gives beside its share: the raid's
// own metadata, with a bitmap of what is not in step (raid_rmeta_extents in
// lib/metadata/raid_manip.c). One extent of 4 MiB is enough for shares of 64 TiB.
func (s shape) overhead() int64 {
	if s.redundant {
		return 1
	}
	return 0
}

// share is how much each of so many devices holds of a volume.
func (s shape) share(extents, devices int64) int64 { return (extents-1)/s.data(devices) + 1 }

// placement is where a volume, or what it grows by, shall lie.
type placement struct {
	layout Layout
	// extents, rounded up to what the layout can do.
	extents int64
	// devices that it is spread over; nil leaves the choice to lvm.
	devices []string
	// thin: it gets its extents from the thin pool when they are written to.
	thin bool
	// cling: each leg of the volume grows on the device that it is on.
	cling bool
}

// flags of lvcreate and lvextend for a placement; its devices come last.
func (p placement) flags() []string {
	s := shapes[p.layout]
	switch {
	case p.cling:
		return []string{"--alloc", "cling"}
	case len(p.devices) == 0:
		return nil
	}
	return s.flags(strconv.FormatInt(s.data(int64(len(p.devices))), 10))
}

// kind is the type that lvcreate is told.
func (p placement) kind() string {
	if p.thin {
		return "thin"
	}
	return shapes[p.layout].kind
}
