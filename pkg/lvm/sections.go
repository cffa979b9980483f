// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// sections are the text of a group's metadata, taken apart: lib/format_text/export.c writes one
// item to a line, and braces around sections.
type sections struct {
	seqno     uint64
	sizeBytes int64
	// head is all of the group that is no volume, without its generation.
	head string
	// devices are the UUIDs of the physical volumes, by the names that the text has for them.
	devices map[string]string
	// volumes are the sections of all logical volumes, also of those that lvm hides, by name.
	volumes map[string]string
}

var errSections = errors.New("the text of the metadata is not as expected")

func parseSections(text []byte) (*sections, error) {
	_, seqno, err := generationOf(text)
	if err != nil {
		return nil, err
	}
	s := &sections{seqno: seqno, sizeBytes: int64(len(text)), devices: map[string]string{}, volumes: map[string]string{}}
	var head strings.Builder
	// path are the names of the sections that are open.
	var path []string
	all, at, start := string(text), 0, 0
	for at < len(all) {
		end := strings.IndexByte(all[at:], '\n')
		if end < 0 {
			break
		}
		line, begins := all[at:at+end], at
		at += end + 1
		name, opens := strings.CutSuffix(line, " {")
		inVolumes := len(path) > 1 && path[1] == "logical_volumes"
		switch {
		case opens:
			path = append(path, name)
			if inVolumes && len(path) == 3 {
				start = begins
			}
			inVolumes = len(path) > 1 && path[1] == "logical_volumes" // a group without any has no such section
		case line == "}":
			if inVolumes && len(path) == 3 {
				if s.volumes[path[2]] != "" {
					return nil, fmt.Errorf("%w: volume %s stands there twice", errSections, path[2])
				}
				s.volumes[path[2]] = all[start:at]
			}
			if path = path[:len(path)-1]; len(path) == 0 {
				s.head = head.String()
				return s, nil // what follows says who has written it, and when
			}
		case len(path) == 3 && path[1] == "physical_volumes":
			if id, ok := strings.CutPrefix(line, "id = "); ok {
				if s.devices[path[2]], err = strconv.Unquote(id); err != nil {
					return nil, fmt.Errorf("%w: %w", errSections, err)
				}
			}
		}
		if line != "" && !inVolumes && (len(path) != 1 || !strings.HasPrefix(line, "seqno = ")) {
			head.WriteString(line)
			head.WriteByte('\n')
		}
	}
	return nil, fmt.Errorf("%w: it has no end", errSections)
}

// plainVolume is a volume of which lvm's report says nothing that is not in its own section.
type plainVolume struct {
	lv LogicalVolume
	// pool is the name of the thin pool that it lies in; empty for a thick one.
	pool string
	// extents that it has on each physical volume, by the names that the text has for them.
	extents map[string]int64
}

// plain reads a section. It returns false for a volume that may be more than linear, striped or
// thin, and for all that it does not know.
func (s *sections) plain(name string, extentBytes int64) (v plainVolume, ok bool) {
	v.extents = map[string]int64{}
	v.lv.Name = name
	var segment map[string]string
	var segments, wanted, extents int64
	var stripes []string
	inStripes, depth := false, 0
	for line := range strings.Lines(s.volumes[name]) {
		line = strings.TrimSuffix(line, "\n")
		if inStripes {
			if inStripes = line != "]"; inStripes {
				stripes = append(stripes, line)
			}
			continue
		}
		key, value, isItem := strings.Cut(line, " = ")
		switch {
		case line == "":
		case strings.HasSuffix(line, " {"):
			if depth++; depth == 2 {
				segment, stripes = map[string]string{}, nil
				segments++
			}
		case line == "}":
			if depth--; depth == 1 {
				n, ok := v.segment(segment, stripes)
				if !ok {
					return v, false
				}
				extents += n
			}
		case !isItem:
			return v, false
		case depth == 2 && key == "stripes" && value == "[":
			inStripes = true
		case depth == 2:
			segment[key] = value
		case depth == 1:
			if !v.item(key, value, &wanted) {
				return v, false
			}
		default:
			return v, false
		}
	}
	v.lv.SizeBytes = extents * extentBytes
	v.lv.Role = []string{"public"}
	return v, depth == 0 && !inStripes && segments > 0 && segments == wanted && extents > 0 && validUUID(v.lv.UUID)
}

// item reads what is said of the volume itself.
func (v *plainVolume) item(key, value string, segments *int64) bool {
	var err error
	switch key {
	case "id":
		v.lv.UUID, err = strconv.Unquote(value)
	case "status":
		return value == `["READ", "WRITE", "VISIBLE"]`
	case "flags":
		return value == "[]"
	case "tags":
		list, ok := strings.CutPrefix(value, "[")
		list, closed := strings.CutSuffix(list, "]")
		if !ok || !closed {
			return false
		}
		for quoted := range strings.SplitSeq(list, ", ") {
			tag, err := strconv.Unquote(quoted)
			if err != nil {
				return false
			}
			v.lv.Tags = append(v.lv.Tags, tag)
		}
	case "segment_count":
		*segments, err = strconv.ParseInt(value, 10, 64)
	case "creation_time", "creation_host":
	default:
		return false
	}
	return err == nil
}

// segment reads one of the volume's segments, and returns how many extents it has.
func (v *plainVolume) segment(items map[string]string, stripes []string) (extents int64, ok bool) {
	extents, err := strconv.ParseInt(items["extent_count"], 10, 64)
	if err != nil || extents <= 0 || extents > math.MaxUint32 || items["start_extent"] == "" { // lvm counts them in 32 bits
		return 0, false
	}
	switch items["type"] {
	case `"striped"`:
		if !v.stripes(extents, items, stripes) {
			return 0, false
		}
		return extents, true
	case `"thin"`:
		if len(items) != len([]string{"start_extent", "extent_count", "type", "thin_pool", "transaction_id", "device_id"}) || v.lv.Layout != nil || items["transaction_id"] == "" {
			return 0, false // it has an origin, or several segments
		}
		v.lv.Layout, v.lv.segmented = []string{"thin", "sparse"}, true
		if v.pool, err = strconv.Unquote(items["thin_pool"]); err != nil {
			return 0, false
		}
		v.lv.ThinNumber, err = strconv.ParseInt(items["device_id"], 10, 64)
		return extents, err == nil
	}
	return 0, false
}

// stripes reads where a segment of a thick volume lies.
func (v *plainVolume) stripes(extents int64, items map[string]string, stripes []string) bool {
	count, err := strconv.ParseInt(items["stripe_count"], 10, 64)
	layout, known := "linear", 4 //nolint:mnd // start_extent, extent_count, type, stripe_count
	if count > 1 {
		layout, known = "striped", known+1 // stripe_size
	}
	if err != nil || count < 1 || int64(len(stripes)) != count || extents%count != 0 || len(items) != known || count > 1 && items["stripe_size"] == "" {
		return false
	}
	if len(v.lv.Layout) > 0 && v.lv.Layout[0] != layout {
		return false
	}
	v.lv.Layout = []string{layout}
	for _, stripe := range stripes {
		quoted, _, _ := strings.Cut(stripe, ", ")
		device, err := strconv.Unquote(quoted)
		if err != nil {
			return false
		}
		v.extents[device] += extents / count
	}
	return true
}

// samePool reports whether two sections are of one thin pool that has got or lost volumes.
func samePool(a, b string) bool {
	const isPool = "\ntype = \"thin-pool\"\n"
	return strings.Contains(a, isPool) && strings.Contains(b, isPool) && withoutTransaction(a) == withoutTransaction(b)
}

func withoutTransaction(section string) string {
	before, after, found := strings.Cut(section, "\ntransaction_id = ")
	if !found {
		return section
	}
	_, after, _ = strings.Cut(after, "\n")
	return before + "\n" + after
}
