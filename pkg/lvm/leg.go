// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Leg is one of the volumes below a volume of a redundant layout: an image, which holds a
// part of its data, or the metadata beside an image.
type Leg struct {
	Name, UUID string
	// Metadata is true for what is no image.
	Metadata bool
	// Devices that it lies on: one, unless an operator has moved a part of it.
	Devices []string
	// Missing: at least one of its devices is not there.
	Missing bool

	// shown to lvm's users, who should not see it.
	shown bool
}

// devicesOfLegs returns the devices of a volume's images, one for each; nil when one of
// them is missing, or lies on several.
func (lv *LogicalVolume) devicesOfLegs() (paths []string) {
	for _, leg := range lv.Legs {
		switch {
		case leg.Metadata:
		case leg.Missing, len(leg.Devices) != 1, slices.Contains(paths, leg.Devices[0]):
			return nil
		default:
			paths = append(paths, leg.Devices[0])
		}
	}
	return paths
}

// lacks returns the numbers of those legs of a volume whose image has a device that is not
// there, or metadata of which it is not.
func (lv *LogicalVolume) lacks() map[string]bool {
	lacks := map[string]bool{}
	for _, leg := range lv.Legs {
		if leg.Missing {
			lacks[legNumber(leg.Name)] = true
		}
	}
	return lacks
}

// missingLegs returns how many legs lack a device.
func (lv *LogicalVolume) missingLegs() int { return len(lv.lacks()) }

var (
	// The names that lvm gives to what is below a volume with legs, and to what it takes out
	// of it to be removed (lib/metadata/raid_manip.c). Nobody else may use such names
	// (apply_lvname_restrictions in lib/misc/lvm-string.c).
	legName       = regexp.MustCompile(`^(.+)_r(?:image|meta)_(\d+)$`)
	extractedName = regexp.MustCompile(`^.+_r(?:image|meta)_\d+_extracted$`)
)

func legNumber(name string) string {
	if m := legName.FindStringSubmatch(name); m != nil {
		return m[2]
	}
	return name
}

// extracted reports whether a volume is what was a leg, was replaced, and would have been
// removed if lvm had come that far: of a device that is not there nothing else is left.
func extracted(lv *LogicalVolume) bool {
	return extractedName.MatchString(lv.Name) && slices.Equal(lv.Layout, []string{"linear"}) && lv.partial && len(lv.on) == 0
}

// hiddenName returns the name within the brackets with which lvm marks what is not for
// its users (report/mark_hidden_devices).
func hiddenName(name string) (string, bool) {
	inner, ok := strings.CutPrefix(name, "[")
	if !ok {
		return name, false
	}
	return strings.CutSuffix(inner, "]")
}

// parseDevices reads lvm's field "devices": what a segment lies on, each with the first
// extent in parentheses. What has no path is another logical volume, or is not there.
func parseDevices(text string) (paths, volumes []string, missing bool, err error) {
	if text == "" {
		return nil, nil, false, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		name, rest, ok := strings.Cut(item, "(")
		if !ok || !strings.HasSuffix(rest, ")") {
			return nil, nil, false, fmt.Errorf("%q is no place on a device", short(item))
		}
		switch {
		case strings.HasPrefix(name, "/"):
			paths = append(paths, name)
		case strings.HasPrefix(name, "[unknown]"):
			missing = true
		default:
			volume, _ := hiddenName(name)
			volumes = append(volumes, volume)
		}
	}
	return paths, volumes, missing, nil
}

// addSegment adds where another piece of the same volume lies.
func (lv *LogicalVolume) addSegment(on []string, partial bool) {
	for _, path := range on {
		if !slices.Contains(lv.on, path) {
			lv.on = append(lv.on, path)
		}
	}
	lv.partial = lv.partial || partial
}

// attachLegs puts what is hidden below the volumes that it is of. Only volumes that are
// shown to users stay.
func (g *Group) attachLegs() error {
	all := g.LVs
	if slices.ContainsFunc(all, func(lv LogicalVolume) bool { return lv.hidden || lv.isLeg() }) {
		g.LVs = slices.DeleteFunc(slices.Clone(all), func(lv LogicalVolume) bool { return lv.hidden || lv.isLeg() })
	}
	for i := range all {
		switch sub := &all[i]; {
		case sub.hidden && sub.partial && slices.Equal(sub.Role, []string{"private", "pool", "spare"}):
			g.lostSpare = sub
		case sub.hidden && layoutOf(sub).Redundant() && g.isPart(sub):
			sub.ofPool = true
			g.below = append(g.below, *sub)
		}
	}
	// What finds the data comes first.
	slices.SortStableFunc(g.below, func(a, b LogicalVolume) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) })
	g.index()
	for i := range all {
		sub := &all[i]
		if sub.parent == "" {
			continue
		}
		if pool := g.Volume(sub.parent); pool != nil && pool.isPool() {
			pool.below = append(pool.below, sub.Layout)
		}
		if !sub.isLeg() {
			continue
		}
		of := g.Volume(sub.parent)
		if of == nil && slices.ContainsFunc(all, func(lv LogicalVolume) bool { return lv.Name == sub.parent }) {
			continue // of what is hidden itself, as below a thin pool of somebody else
		}
		if of == nil {
			return fmt.Errorf("%s/%s is a part of %q, which is not shown", g.Name, sub.Name, sub.parent)
		}
		of.Legs = append(of.Legs, Leg{
			Name: sub.Name, UUID: sub.UUID, Metadata: slices.Contains(sub.Role, "metadata"), Devices: sub.on, Missing: sub.partial, shown: !sub.hidden,
		})
	}
	for lv := range g.each() {
		lv.judgeLegs()
	}
	return nil
}

// isPart reports whether what is hidden is the data or the metadata of the group's own thin
// pool.
func (g *Group) isPart(sub *LogicalVolume) bool {
	if !slices.Contains(sub.Role, "thin") || !slices.Contains(sub.Role, "pool") {
		return false
	}
	pool, err := g.thinPool()
	return err == nil && pool != nil && pool.Name == sub.parent
}

// judgeLegs says whether lvm has come to the end of making a volume: it hides the metadata
// of all legs when it has cleared them.
func (lv *LogicalVolume) judgeLegs() {
	lv.Unfinished = len(lv.Legs) > 0
	for _, leg := range lv.Legs {
		if leg.shown != leg.Metadata {
			lv.Unfinished = false
		}
	}
}

// isLeg reports whether a volume is a part of one with legs.
func (lv *LogicalVolume) isLeg() bool {
	return lv.parent != "" && slices.Contains(lv.Role, "raid") && slices.Contains(lv.Role, "private")
}
