// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Usage is what the host's mount table, its swap table and btrfs say of who uses
// which device. Holders (device-mapper, md, bcache) are in Device.Holders.
//
// Mounts in other mount namespaces than that of the host's first process are not
// seen: only OpenExclusive knows of all.
type Usage struct {
	mounts map[string][]string // kernel name to mount points, sorted
	swaps  map[string]bool     // kernel names
}

// MountPoints are where the filesystem on this very device is mounted.
func (u *Usage) MountPoints(kernelName string) []string { return u.mounts[kernelName] }

// Swap reports whether the device is a swap area in use.
func (u *Usage) Swap(kernelName string) bool { return u.swaps[kernelName] }

// Mounts calls f for every mount of a block device, by mount point.
func (u *Usage) Mounts(f func(kernelName, mountPoint string)) {
	for _, name := range slices.Sorted(maps.Keys(u.mounts)) {
		for _, point := range u.mounts[name] {
			f(name, point)
		}
	}
}

// Usage reads the tables. devices is what Devices returned: device numbers are
// translated by it.
func (s Sysfs) Usage(ctx context.Context, devices []Device) (*Usage, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names := make(map[[2]uint32]string, len(devices))
	for i := range devices {
		if !devices[i].Hidden {
			names[[2]uint32{devices[i].Major, devices[i].Minor}] = devices[i].KernelName
		}
	}
	usage := &Usage{mounts: map[string][]string{}, swaps: map[string]bool{}}
	if err := s.readMounts(usage, names); err != nil {
		return nil, err
	}
	if err := s.readSwaps(usage, names); err != nil {
		return nil, err
	}
	for name, points := range usage.mounts {
		slices.Sort(points)
		usage.mounts[name] = slices.Compact(points)
	}
	return usage, nil
}

func (s Sysfs) readMounts(usage *Usage, names map[[2]uint32]string) error {
	file, err := os.Open(s.hostPath("/proc/1/mountinfo"))
	if err != nil {
		return fmt.Errorf("read the mount table: %w", err)
	}
	defer file.Close()
	mounts, err := mountinfo.GetMountsFromReader(file, nil)
	if err != nil {
		return fmt.Errorf("read the mount table: %w", err)
	}
	btrfs, err := s.btrfsMembers()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if name, found := names[[2]uint32{uint32(m.Major), uint32(m.Minor)}]; found && m.Major != 0 {
			usage.mounts[name] = append(usage.mounts[name], m.Mountpoint)
			continue
		}
		// btrfs and bcachefs have numbers of their own; their source names the device,
		// or several.
		for source := range strings.SplitSeq(m.Source, ":") {
			name := s.nameOf(source, names)
			if name == "" {
				continue
			}
			for _, member := range btrfs.with(name) {
				usage.mounts[member] = append(usage.mounts[member], m.Mountpoint)
			}
		}
	}
	// A member whose mount was not found in the table is in use all the same.
	for _, members := range btrfs {
		for _, member := range members {
			if usage.mounts[member] == nil {
				usage.mounts[member] = []string{"(btrfs in another namespace)"}
			}
		}
	}
	return nil
}

// readSwaps reads /proc/swaps: a header, then one area a line, its path first.
func (s Sysfs) readSwaps(usage *Usage, names map[[2]uint32]string) error {
	data, err := os.ReadFile(s.hostPath("/proc/swaps"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without swap
	}
	if err != nil {
		return fmt.Errorf("read the swap table: %w", err)
	}
	for _, path := range ParseSwaps(data) {
		if name := s.nameOf(path, names); name != "" {
			usage.swaps[name] = true
		}
	}
	return nil
}

// ParseSwaps returns the paths of the swap areas in /proc/swaps, files too.
func ParseSwaps(data []byte) []string {
	var paths []string
	first := true
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if first || len(fields) == 0 {
			first = false
			continue
		}
		if path := unescapeOctal(fields[0]); strings.HasPrefix(path, "/") {
			paths = append(paths, path)
		}
	}
	return paths
}

// nameOf turns the path of a device node into its kernel name, "" for anything
// else.
func (s Sysfs) nameOf(path string, names map[[2]uint32]string) string {
	if !strings.HasPrefix(path, "/dev/") {
		return ""
	}
	var stat unix.Stat_t
	if err := unix.Stat(s.hostPath(path), &stat); err == nil && stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		if name := names[[2]uint32{unix.Major(stat.Rdev), unix.Minor(stat.Rdev)}]; name != "" {
			return name
		}
	}
	name := strings.ReplaceAll(strings.TrimPrefix(path, "/dev/"), "/", "!")
	for _, known := range names {
		if known == name {
			return name
		}
	}
	return ""
}

// btrfsSets are the members of each mounted btrfs.
type btrfsSets [][]string

// with returns the members of the filesystem that the device belongs to; the
// device alone if it is no member of any.
func (b btrfsSets) with(name string) []string {
	for _, members := range b {
		if slices.Contains(members, name) {
			return members
		}
	}
	return []string{name}
}

// btrfsMembers reads /sys/fs/btrfs/<uuid>/devices, which the kernel shows for
// filesystems that are mounted.
func (s Sysfs) btrfsMembers() (btrfsSets, error) {
	directories, err := filepath.Glob(filepath.Join(s.root(), "fs/btrfs/*/devices"))
	if err != nil {
		return nil, err
	}
	var sets btrfsSets
	for _, directory := range directories {
		entries, err := os.ReadDir(directory)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unmounted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list the devices of a btrfs: %w", err)
		}
		var members []string
		for _, entry := range entries {
			members = append(members, entry.Name())
		}
		sets = append(sets, members)
	}
	return sets, nil
}

// unescapeOctal undoes the \ooo of /proc tables.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(s string) bool {
	return strings.Trim(s, "01234567") == "" && s[0] <= '3'
}
