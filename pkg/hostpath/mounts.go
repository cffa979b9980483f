// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// MountTable is a file in the format of /proc/<pid>/mountinfo (proc(5)).
type MountTable string

// HostMounts returns the host's mount table: that of the host's first process, or,
// on the host itself, of this one; hostRoot as in Where.
func HostMounts(hostRoot string) MountTable {
	if hostRoot == "" {
		return "/proc/self/mountinfo"
	}
	return MountTable(path.Join("/", hostRoot, "proc/1/mountinfo"))
}

// InUse reports whether the directory, or anything in it, is mounted anywhere (by
// a bind mount, which is how volumes get into pods), or whether anything is
// mounted on it or in it.
func (t MountTable) InUse(dir string) (bool, error) {
	return t.any(dir, func(*mountinfo.Info) bool { return true })
}

// Written is InUse for mounts that can be written to: those that are not read-only, as a volume
// is in a pod that says so of its claim.
func (t MountTable) Written(dir string) (bool, error) {
	return t.any(dir, func(m *mountinfo.Info) bool { return !slices.Contains(strings.Split(m.Options, ","), "ro") })
}

// any reports whether InUse is true by one of the mounts that count.
func (t MountTable) any(dir string, counts func(*mountinfo.Info) bool) (bool, error) {
	mounts, err := t.read()
	if err != nil {
		return false, err
	}
	on, err := mountOf(mounts, dir)
	if err != nil {
		return false, err
	}
	within := path.Join(on.Root, strings.TrimPrefix(dir, on.Mountpoint))
	for _, m := range mounts {
		if !counts(m) {
			continue
		}
		if beneath(dir, m.Mountpoint) {
			return true, nil
		}
		if m.Major == on.Major && m.Minor == on.Minor && beneath(within, m.Root) {
			return true, nil
		}
	}
	return false, nil
}

func (t MountTable) read() ([]*mountinfo.Info, error) {
	f, err := os.Open(string(t))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return mounts, nil
}

// mountOf returns the mount that a directory is on.
func mountOf(mounts []*mountinfo.Info, dir string) (*mountinfo.Info, error) {
	var on *mountinfo.Info
	for _, m := range mounts {
		if beneath(m.Mountpoint, dir) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m // of two on one mount point the later one covers the other
		}
	}
	if on == nil {
		return nil, fmt.Errorf("read the mount table: no mount holds %s", dir)
	}
	return on, nil
}

// beneath reports whether a clean path is the directory or lies in it.
func beneath(dir, p string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
