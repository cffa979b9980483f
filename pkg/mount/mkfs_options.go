// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// maxMkfsOptions bounds the words of one volume.
const maxMkfsOptions = 32

// allowed says what a flag of mkfs may be given: a value, or sub-options by name. An
// option is allowed when it shapes the filesystem for its disk or its files. What names
// another device, forces anything, leaves out the journal, or sets what Berth sets
// itself (UUID, label, what is zeroed when) is not.
type allowed struct {
	value *regexp.Regexp
	subs  map[string]*regexp.Regexp
	// features is the pattern of each of several words, separated by commas.
	features *regexp.Regexp
}

var (
	number  = regexp.MustCompile(`^[0-9]{1,12}$`)
	size    = regexp.MustCompile(`^[0-9]{1,12}[skmgbSKMGB]?$`)
	boolean = regexp.MustCompile(`^[01]$`)
	// features that change neither what e2fsck needs nor whether there is a journal.
	extFeature = regexp.MustCompile(`^\^?(64bit|bigalloc|casefold|dir_index|dir_nlink|ea_inode|encrypt|extent|extra_isize|fast_commit|flex_bg|huge_file|inline_data|large_dir|large_file|metadata_csum|metadata_csum_seed|orphan_file|project|quota|sparse_super2|verity)$`)

	// btrfsFeature leaves out what needs several devices or zoned disks.
	btrfsFeature = regexp.MustCompile(`^\^?(block-group-tree|extref|free-space-tree|mixed-bg|no-holes|quota|skinny-metadata|squota)$`)
	// btrfsProfile of one device.
	btrfsProfile = regexp.MustCompile(`^(single|dup)$`)

	// mkfsOptions are those of mke2fs(8), mkfs.xfs(8) and mkfs.btrfs(8).
	mkfsOptions = map[string]map[string]allowed{
		Ext4: {
			"-b": {value: regexp.MustCompile(`^(1024|2048|4096)$`)},
			"-C": {value: number},
			"-E": {subs: map[string]*regexp.Regexp{"stride": number, "stripe_width": number, "lazy_itable_init": boolean, "packed_meta_blocks": boolean}},
			"-i": {value: number},
			"-I": {value: regexp.MustCompile(`^(128|256|512|1024)$`)},
			"-J": {subs: map[string]*regexp.Regexp{"size": number, "fast_commit_size": number}},
			"-m": {value: regexp.MustCompile(`^([0-9]|[1-4][0-9]|50)$`)},
			"-N": {value: number},
			"-O": {features: extFeature},
			"-T": {value: regexp.MustCompile(`^[a-z0-9]{1,20}$`)},
		},
		XFS: {
			"-b": {subs: map[string]*regexp.Regexp{"size": size}},
			"-d": {subs: map[string]*regexp.Regexp{"su": size, "sw": number, "sunit": number, "swidth": number, "agcount": number}},
			"-i": {subs: map[string]*regexp.Regexp{"size": number, "maxpct": number, "sparse": boolean, "nrext64": boolean}},
			"-l": {subs: map[string]*regexp.Regexp{"size": size, "su": size, "sunit": number}},
			"-m": {subs: map[string]*regexp.Regexp{"bigtime": boolean, "finobt": boolean, "inobtcount": boolean, "reflink": boolean, "rmapbt": boolean}},
			"-n": {subs: map[string]*regexp.Regexp{"size": size}},
			"-s": {subs: map[string]*regexp.Regexp{"size": size}},
		},
		Btrfs: {
			// The last kind, blake2, is not read by ReadSuperblock.
			"--csum": {value: regexp.MustCompile(`^(crc32c|xxhash|sha256)$`)},
			"-d":     {value: btrfsProfile},
			"-m":     {value: btrfsProfile},
			"-n":     {value: size},
			"-O":     {features: btrfsFeature},
			"-s":     {value: size},
		},
	}
)

// CheckMkfsOptions says what is wrong with options of mkfs: words in pairs of a flag
// and its value, each flag once. volume.ErrInvalid names the word and what is allowed.
func CheckMkfsOptions(fsType string, words []string) error {
	flags, known := mkfsOptions[fsType]
	switch {
	case len(words) == 0:
		return nil
	case !known:
		return fmt.Errorf("%w: options of mkfs for the filesystem %q", volume.ErrInvalid, fsType)
	case len(words) > maxMkfsOptions:
		return fmt.Errorf("%w: %d words of options of mkfs, at most %d are taken", volume.ErrInvalid, len(words), maxMkfsOptions)
	}
	seen := map[string]bool{}
	for i := 0; i < len(words); i += 2 {
		flag := words[i]
		rule, ok := flags[flag]
		switch {
		case !ok:
			return fmt.Errorf("%w: option %q of mkfs.%s is not allowed; allowed are %s, each followed by a space and its value",
				volume.ErrInvalid, flag, fsType, strings.Join(slices.Sorted(maps.Keys(flags)), " "))
		case seen[flag]:
			return fmt.Errorf("%w: option %s of mkfs.%s is there twice; join its values with commas", volume.ErrInvalid, flag, fsType)
		case i+1 == len(words):
			return fmt.Errorf("%w: option %s of mkfs.%s has no value", volume.ErrInvalid, flag, fsType)
		}
		seen[flag] = true
		if err := rule.check(words[i+1]); err != nil {
			return fmt.Errorf("%w: option %s of mkfs.%s: %w", volume.ErrInvalid, flag, fsType, err)
		}
	}
	return nil
}

func (a allowed) check(value string) error {
	switch {
	case a.value != nil:
		if !a.value.MatchString(value) {
			return fmt.Errorf("%q is not allowed, it must match %s", value, a.value)
		}
		return nil
	case a.features != nil:
		for name := range strings.SplitSeq(value, ",") {
			if !a.features.MatchString(name) {
				return fmt.Errorf("feature %q is not allowed, it must match %s", name, a.features)
			}
		}
		return nil
	}
	for sub := range strings.SplitSeq(value, ",") {
		name, given, _ := strings.Cut(sub, "=")
		pattern, ok := a.subs[name]
		if !ok {
			return fmt.Errorf("%q is not allowed; allowed are %s", name, strings.Join(slices.Sorted(maps.Keys(a.subs)), ", "))
		}
		if !pattern.MatchString(given) {
			return fmt.Errorf("%s=%q is not allowed, it must match %s", name, given, pattern)
		}
	}
	return nil
}

// writesInodeTables reports whether mkfs.ext4 leaves none of the inode tables to the kernel:
// it is told so, or the tables would have no checksums to tell by what was not written.
func writesInodeTables(words []string) bool {
	for i := 0; i+1 < len(words); i += 2 {
		for value := range strings.SplitSeq(words[i+1], ",") {
			if words[i] == "-E" && value == "lazy_itable_init=0" || words[i] == "-O" && value == "^metadata_csum" {
				return true
			}
		}
	}
	return false
}

// withMkfsOptions puts options, which are valid, after Berth's own: the last one
// counts. Only the extended options of ext4 replace one another as a whole, so they are
// joined.
func withMkfsOptions(fsType string, own, words []string) []string {
	out := slices.Clone(own)
	for i := 0; i+1 < len(words); i += 2 {
		if at := slices.Index(out, words[i]); fsType == Ext4 && words[i] == "-E" && at >= 0 {
			out[at+1] += "," + words[i+1]
			continue
		}
		out = append(out, words[i], words[i+1])
	}
	return out
}
