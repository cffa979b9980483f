// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// UdevRecord is udev's record of one device: /run/udev/data/b<major>:<minor>.
type UdevRecord struct {
	// Links without the leading /dev/.
	Links []string
	// Properties as rules set them.
	Properties map[string]string
	// Initialized is true once udev has finished with the device.
	Initialized bool
}

// ParseUdevRecord reads a record as systemd-udevd writes it: one item a line, a
// letter, a colon and a value. Letters it does not know are passed over.
func ParseUdevRecord(data []byte) UdevRecord {
	record := UdevRecord{Properties: map[string]string{}}
	for line := range bytes.Lines(data) {
		kind, value, found := strings.Cut(strings.TrimRight(string(line), "\n"), ":")
		if !found {
			continue
		}
		switch kind {
		case "S":
			if value = unescapeUdev(value); value != "" {
				record.Links = append(record.Links, value)
			}
		case "E":
			if key, content, found := strings.Cut(value, "="); found && key != "" {
				record.Properties[key] = content
			}
		case "I":
			record.Initialized = true
		}
	}
	return record
}

// readUdevRecord reads the record of a device. No record is an empty one: the
// host may have no udev, or udev is not there yet.
func readUdevRecord(directory string, major, minor uint32) (UdevRecord, error) {
	path := filepath.Join(directory, fmt.Sprintf("b%d:%d", major, minor))
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return UdevRecord{}, nil
	}
	if err != nil {
		return UdevRecord{}, fmt.Errorf("read udev's record: %w", err)
	}
	return ParseUdevRecord(data), nil
}

// diskSeq is the kernel's number of the disk that the record was made of, by its link
// (systemd 251 and newer: rules.d/60-persistent-storage.rules).
func (r UdevRecord) diskSeq() (seq uint64, found bool) {
	for _, link := range r.Links {
		if number, is := strings.CutPrefix(link, "disk/by-diskseq/"); is {
			number, _, _ = strings.Cut(number, "-part")
			seq, err := strconv.ParseUint(number, 10, 64)
			return seq, err == nil
		}
	}
	return 0, false
}

// content is what udev's blkid builtin has noted, with its escapes undone.
func (r UdevRecord) content() UdevContent {
	first := func(keys ...string) string {
		for _, key := range keys {
			if v := unescapeUdev(r.Properties[key]); v != "" {
				return v
			}
		}
		return ""
	}
	return UdevContent{
		FSType:         first("ID_FS_TYPE"),
		FSUUID:         first("ID_FS_UUID_ENC", "ID_FS_UUID"),
		FSLabel:        first("ID_FS_LABEL_ENC", "ID_FS_LABEL"),
		PartitionTable: first("ID_PART_TABLE_TYPE"),
	}
}

// unescapeUdev undoes udev's \xHH.
func unescapeUdev(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i+3 < len(s) && s[i] == '\\' && s[i+1] == 'x' {
			if v, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
