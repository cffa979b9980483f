// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"strconv"
	"strings"
)

// row is one line of a report; the first thing wrong with it is kept in err. A report has
// thousands of them with a dozen fields each: one row reads them all, and looks for a field
// among so few by going through them.
type row struct {
	fields []field
	err    error
}

type field struct{ name, value string }

const fieldPrefix = "LVM2_"

// read reads a line, in the place of what was read before.
func (r *row) read(text string) error {
	r.fields, r.err = r.fields[:0], nil
	for rest := text; rest != ""; {
		key, after, ok := strings.Cut(rest, "='")
		name, prefixed := strings.CutPrefix(key, fieldPrefix)
		if !ok || !prefixed || strings.ContainsAny(name, " '") {
			return fmt.Errorf("%q is no row of a report", short(text))
		}
		value, next, ok := strings.Cut(after, "'")
		if !ok || next != "" && next[0] != ' ' {
			return fmt.Errorf("the value of %s has no end in %q", name, short(text))
		}
		if _, twice := r.field(name); twice {
			return fmt.Errorf("%s stands twice in %q", name, short(text))
		}
		r.fields = append(r.fields, field{name, value})
		rest = strings.TrimLeft(next, " ")
	}
	return nil
}

// field returns a value; ok is false where it was not asked for.
func (r *row) field(name string) (value string, ok bool) {
	for i := range r.fields {
		if r.fields[i].name == name {
			return r.fields[i].value, true
		}
	}
	return "", false
}

func (r *row) volume() LogicalVolume {
	lv := r.plainVolume()
	if _, lv.segmented = r.field("THIN_ID"); lv.segmented {
		lv.ThinNumber = r.numberOrNone("THIN_ID")
	}
	if zero, asked := r.field("ZERO"); asked {
		lv.ShowsOldData = zero != "zero" && lv.isPool()
	}
	text, withLegs := r.field("DEVICES")
	if !withLegs {
		return lv
	}
	lv.Name, lv.hidden = hiddenName(lv.Name)
	lv.parent, _ = hiddenName(r.text("LV_PARENT"))
	var err error
	if lv.on, lv.onVolumes, lv.partial, err = parseDevices(text); err != nil {
		r.fail("volume %s: %w", lv.Name, err)
	}
	return lv
}

func (r *row) plainVolume() LogicalVolume {
	return LogicalVolume{
		Name:          r.text("LV_NAME"),
		UUID:          r.uuid("LV_UUID"),
		SizeBytes:     r.number("LV_SIZE"),
		Tags:          r.list("LV_TAGS"),
		Layout:        r.list("LV_LAYOUT"),
		Role:          r.list("LV_ROLE"),
		PoolUUID:      r.uuid("POOL_LV_UUID"),
		OriginUUID:    r.uuid("ORIGIN_UUID"),
		MetadataBytes: r.numberOrNone("LV_METADATA_SIZE"),
		FailsWhenFull: r.text("LV_WHEN_FULL") == "error",
		groupUUID:     r.uuid("VG_UUID"),
		groupSeqno:    uint64(r.number("VG_SEQNO")),
	}
}

func (r *row) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *row) text(name string) string {
	value, ok := r.field(name)
	if !ok {
		r.fail("a row lacks %s", name)
	}
	return value
}

func (r *row) number(name string) int64 {
	text := r.text(name)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		r.fail("%s is %q, not a number", name, short(text))
		return 0
	}
	return n
}

// numberOrNone is 0 where the field does not apply.
func (r *row) numberOrNone(name string) int64 {
	if r.text(name) == "" {
		return 0
	}
	return r.number(name)
}

func (r *row) list(name string) []string {
	if text := r.text(name); text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

func (r *row) uuid(name string) string {
	text := r.text(name)
	optional := name == "VG_UUID" || name == "POOL_LV_UUID" || name == "ORIGIN_UUID"
	if !validUUID(text) && (!optional || text != "") {
		r.fail("%s is %q, not a UUID of LVM", name, short(text))
	}
	return text
}

func short(text string) string {
	const limit = 80
	if len(text) > limit {
		return text[:limit] + "…"
	}
	return text
}
