// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// The tags by which Berth knows what it made.
const (
	// TagPool + the pool's UID marks a volume group.
	TagPool = "berth.dev/pool="
	// TagPoolSet + the name of the PoolSet is for people.
	TagPoolSet = "berth.dev/poolset="
	// TagVolume + the volume's name marks a logical volume as ours.
	TagVolume = "berth.dev/volume="
	// TagSnapshot + the snapshot's name marks a logical volume as a snapshot of ours.
	TagSnapshot = "berth.dev/snapshot="
	// TagInstant + a time marks the snapshots of a group that were all taken then.
	TagInstant = "berth.dev/instant="
)

var (
	// lib/uuid/uuid.c: 32 characters in groups of 6-4-4-4-4-4-6.
	uuidPattern = regexp.MustCompile(`^[0-9A-Za-z!#]{6}(-[0-9A-Za-z!#]{4}){5}-[0-9A-Za-z!#]{6}$`)
	// lib/misc/lvm-string.c: _validate_name. Narrower than lvm: no leading dot.
	namePattern = regexp.MustCompile(`^[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,126}$`)
	// Paths of devices as the kernel and udev make them. No comma: it separates
	// the values of --devices.
	pathPattern = regexp.MustCompile(`^/dev/[A-Za-z0-9_+.:@=/-]+$`)
	// What may stand in a line for lvm's command shell, which splits at white space
	// and knows quotes and comments (lvm_split in tools/lvmcmdline.c).
	wordPattern = regexp.MustCompile(`^[A-Za-z0-9/-][A-Za-z0-9_+.:@=/,&|()[\]{}!#-]*$`)
	// lib/metadata/metadata-exported.h: the characters of a tag; a leading hyphen is
	// not allowed, and the text has a prefix of ours anyhow.
	notInTag = regexp.MustCompile(`[^A-Za-z0-9_+.-]`)
)

const maxTagText = 128

func validUUID(s string) bool { return uuidPattern.MatchString(s) }

// tagText makes any text fit for a tag; it is for people, nothing is looked up by
// it.
func tagText(s string) string {
	s = notInTag.ReplaceAllString(s, "_")
	if len(s) > maxTagText {
		s = s[:maxTagText]
	}
	return s
}

// ValidateGroupName returns volume.ErrInvalid unless lvm takes the name for a
// volume group.
func ValidateGroupName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: %q cannot be the name of a volume group", volume.ErrInvalid, name)
	}
	return nil
}

func validatePaths(paths []string) error {
	for _, path := range paths {
		if !pathPattern.MatchString(path) || strings.Contains(path, "..") {
			return fmt.Errorf("%w: %q cannot be the path of a device", volume.ErrInvalid, path)
		}
	}
	return nil
}

// snapshotPrefix + a snapshot's ID is the name of its logical volume.
const snapshotPrefix = "snap-"

// ownedSnapshot reports whether a logical volume is a snapshot of ours: it carries our tag
// and its name holds a snapshot's ID.
func ownedSnapshot(lv *LogicalVolume) bool {
	id, ok := strings.CutPrefix(lv.Name, snapshotPrefix)
	return ok && volume.ValidateID(id) == nil && hasTag(lv, TagSnapshot)
}

// ownedVolume reports whether a logical volume is one of ours: it carries our tag
// and its name is a volume's ID.
func ownedVolume(lv *LogicalVolume) bool {
	if volume.ValidateID(lv.Name) != nil {
		return false
	}
	return hasTag(lv, TagVolume)
}

// title is how people know a volume: the name in its tag.
func (lv *LogicalVolume) title() string {
	for _, tag := range lv.Tags {
		if name, ok := strings.CutPrefix(tag, TagVolume); ok && name != "" {
			return name
		}
	}
	return lv.Name
}

// called is how a message calls what has legs.
func (lv *LogicalVolume) called() string {
	switch {
	case lv.ofPool && slices.Contains(lv.Role, "metadata"):
		return "the metadata of the thin pool"
	case lv.ofPool:
		return "the data of the thin pool"
	}
	return "volume " + lv.title()
}

func hasTag(lv *LogicalVolume, prefix string) bool {
	return slices.ContainsFunc(lv.Tags, func(tag string) bool { return strings.HasPrefix(tag, prefix) })
}

// dmUUID is what device-mapper calls an active logical volume
// (lib/activate/dev_manager.c: build_dm_uuid).
func dmUUID(groupUUID, lvUUID string) string {
	return "LVM-" + strings.ReplaceAll(groupUUID+lvUUID, "-", "")
}

// dmName is the name of its node under /dev/mapper
// (libdm/libdm-string.c: dm_build_dm_name doubles the hyphens).
func dmName(group, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(group) + "-" + double(lv)
}
