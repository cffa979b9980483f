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
	// TagFilling + a wipe policy marks a volume that is being filled with a copy, and was
	// handed to nobody.
	TagFilling = "berth.dev/filling="
	// TagCopy + a wipe policy marks the snapshot that a volume is being filled from.
	TagCopy = "berth.dev/copy="
	// TagDeleted + a wipe policy marks a volume that was deleted and is not wiped yet.
	TagDeleted = "berth.dev/deleted="
	// TagWipe + a wipe policy says what happens to what a thick snapshot has kept.
	TagWipe = "berth.dev/wipe="
	// TagInstant + a time marks the snapshots of a group that were all taken then.
	TagInstant = "berth.dev/instant="
)

var (
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

// validUUID knows a UUID of LVM: 32 characters in groups of 6-4-4-4-4-4-6 (lib/uuid/uuid.c).
// Each row of a report has several.
func validUUID(s string) bool {
	const length = 38
	if len(s) != length {
		return false
	}
	for i := range length {
		switch c := s[i]; {
		case i == 6, i == 11, i == 16, i == 21, i == 26, i == 31:
			if c != '-' {
				return false
			}
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', c == '!', c == '#':
		default:
			return false
		}
	}
	return true
}

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
	return ownedAs(lv, snapshotPrefix, TagSnapshot)
}

const (
	// copyPrefix + the ID of a volume is the name of the snapshot that it is filled from,
	// and deletedPrefix + that ID the name of a volume that was deleted.
	copyPrefix    = "copy-"
	deletedPrefix = "deleted-"
)

// ownedAs reports whether a logical volume is one that we have named and tagged so.
func ownedAs(lv *LogicalVolume, prefix, tag string) bool {
	id, ok := strings.CutPrefix(lv.Name, prefix)
	return ok && volume.ValidateID(id) == nil && hasTag(lv, tag)
}

// ownedCopy reports whether a logical volume is a snapshot that a volume is filled from.
func ownedCopy(lv *LogicalVolume) bool { return ownedAs(lv, copyPrefix, TagCopy) }

// ownedDeleted reports whether a logical volume is one that was deleted.
func ownedDeleted(lv *LogicalVolume) bool { return ownedAs(lv, deletedPrefix, TagDeleted) }

// isDeleted reports whether a logical volume is one that was deleted, also when it has its
// former name still, or its former tag.
func isDeleted(lv *LogicalVolume) bool {
	return ownedDeleted(lv) || ownedAs(lv, deletedPrefix, TagVolume) || ownedAs(lv, "", TagDeleted) && !hasTag(lv, TagVolume)
}

// isDeletedOf reports whether a volume that was deleted was the one with that ID.
func isDeletedOf(lv *LogicalVolume, id string) bool {
	return lv.Name == id || lv.Name == deletedPrefix+id
}

// ownedFilling reports whether a logical volume is being filled with a copy.
func ownedFilling(lv *LogicalVolume) bool {
	return ownedAs(lv, "", TagFilling) && !hasTag(lv, TagVolume)
}

// owned reports whether a logical volume is ours to remove.
func owned(lv *LogicalVolume) bool {
	return ownedVolume(lv) || ownedSnapshot(lv) || ownedCopy(lv) || ownedDeleted(lv) || ownedFilling(lv)
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
	if name := lv.tagged(TagVolume); name != "" {
		return name
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

// tagged returns what follows a prefix in the first tag that has it.
func (lv *LogicalVolume) tagged(prefix string) string {
	for _, tag := range lv.Tags {
		if text, ok := strings.CutPrefix(tag, prefix); ok && text != "" {
			return text
		}
	}
	return ""
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
