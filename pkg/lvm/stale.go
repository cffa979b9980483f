// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveStaleNodes removes what is left in /dev of a volume group's volumes that are not
// active any more, so that vgcreate takes the name: it refuses one that "already exists
// in filesystem". Berth's commands make the nodes themselves; an lvremove by hand leaves
// their removal to udev, which does not know them.
//
// root is where the host's /dev and /sys are seen. Only links of the group to nodes under
// /dev/mapper go, and these nodes, and only where the kernel has no device of that number
// and name; anything else stays, and lvm says so. It does nothing when nothing is left.
func RemoveStaleNodes(root, groupName string) error {
	if err := ValidateGroupName(groupName); err != nil {
		return err
	}
	directory := filepath.Join(root, "dev", groupName)
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for nodes of volume group %s: %w", groupName, err)
	}
	for _, entry := range entries {
		if err := removeStale(root, filepath.Join(directory, entry.Name())); err != nil {
			return fmt.Errorf("remove the nodes of volume group %s: %w", groupName, err)
		}
	}
	// Whoever made something there meanwhile keeps it.
	if err := os.Remove(directory); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the nodes of volume group %s: %w", groupName, err)
	}
	return nil
}

func removeStale(root, link string) error {
	target, err := os.Readlink(link)
	if err != nil {
		return nil //nolint:nilerr // no link, so it is not lvm's
	}
	name, ok := strings.CutPrefix(filepath.Clean(target), "/dev/mapper/")
	if !ok || strings.Contains(name, "/") {
		return nil
	}
	node := filepath.Join(root, "dev/mapper", name)
	if stale, err := isStale(root, node, name); err != nil || !stale {
		return err
	}
	for _, path := range []string{link, node} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isStale reports whether a node stands for no device of device-mapper of that name.
func isStale(root, node, name string) (bool, error) {
	var st unix.Stat_t
	switch err := unix.Lstat(node, &st); {
	case errors.Is(err, unix.ENOENT):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("stat %s: %w", node, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return false, nil // udev's link: the device is there, or udev takes it away
	}
	text, err := readText(filepath.Join(root, "sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), "dm/name"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("look for the device of %s: %w", node, err)
	}
	return text != name, nil
}
