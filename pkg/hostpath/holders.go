// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ProcessTable is a directory like /proc (proc(5)).
type ProcessTable string

// HostProcesses returns the host's processes; hostRoot as in Where.
func HostProcesses(hostRoot string) ProcessTable {
	return ProcessTable(path.Join("/", hostRoot, "proc"))
}

// Holder says in words who has a directory of the host mounted, or something in it, and at
// what: also in mount namespaces of containers, in which alone a hostPath volume of a pod is
// seen. A directory above it counts where the host itself has it mounted a second time. Empty:
// nobody has.
//
// A mount of the whole filesystem does not count, nor do files that are open.
func (t ProcessTable) Holder(dir string) (string, error) {
	own, err := t.mounts("1")
	if err != nil {
		return "", err
	}
	on, err := mountOf(own, dir)
	if err != nil {
		return "", err
	}
	within := path.Join(on.Root, strings.TrimPrefix(dir, on.Mountpoint))
	same := func(m *mountinfo.Info) bool { return m.Major == on.Major && m.Minor == on.Minor }
	for _, m := range own {
		switch {
		case beneath(dir, m.Mountpoint):
			return "something is mounted at " + m.Mountpoint, nil
		case same(m) && beneath(within, m.Root):
			return "it is mounted at " + m.Mountpoint, nil
		case same(m) && m.Root != on.Root && beneath(on.Root, m.Root) && beneath(m.Root, within):
			return fmt.Sprintf("a directory above it is mounted at %s, too", m.Mountpoint), nil
		}
	}
	return t.otherHolder(func(m *mountinfo.Info) bool { return same(m) && beneath(within, m.Root) })
}

// otherHolder looks into every mount namespace, by every root directory that a process has
// in it: what is mounted outside of that, a process is not shown.
func (t ProcessTable) otherHolder(holds func(*mountinfo.Info) bool) (string, error) {
	processes, err := os.ReadDir(string(t))
	if err != nil {
		return "", fmt.Errorf("list the host's processes: %w", err)
	}
	seen := map[string]bool{}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		namespace, err := os.Readlink(path.Join(string(t), p.Name(), "ns/mnt"))
		root, rootErr := os.Readlink(path.Join(string(t), p.Name(), "root"))
		view := namespace + root
		if err != nil || rootErr != nil {
			view = p.Name() // which it is is not to be seen, what is in it may be
		}
		if seen[view] {
			continue
		}
		mounts, err := t.mounts(p.Name())
		if isGone(err) {
			continue // another process may have the same
		}
		if err != nil {
			return "", err
		}
		seen[view] = true
		for _, m := range mounts {
			if holds(m) {
				return fmt.Sprintf("process %s (%s) has it mounted at %s", p.Name(), t.command(p.Name()), m.Mountpoint), nil
			}
		}
	}
	return "", nil
}

func (t ProcessTable) mounts(process string) ([]*mountinfo.Info, error) {
	return MountTable(path.Join(string(t), process, "mountinfo")).read()
}

// command is what a process is called; empty when it has ended.
func (t ProcessTable) command(process string) string {
	name, _ := os.ReadFile(path.Join(string(t), process, "comm"))
	return strings.TrimSpace(string(name))
}

// isGone reports whether a process has ended, as reading of it tells.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}
