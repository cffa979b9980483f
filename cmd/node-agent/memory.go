// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// gcPercent and memoryLimitBytes trade processor time, of which an agent needs
	// little, for memory, which is taken from every node of the cluster.
	gcPercent        = 40
	memoryLimitBytes = 128 << 20
)

// trimMemory gives back what only the start of the process needed: heap, and the pages
// of the program itself. Of its 45 MB the packages' init functions, which register
// every Kubernetes type there is, touch most, and the work afterwards a third; no
// other part of the process would ever let the rest go. A page that is needed again
// is mapped again from the page cache.
func trimMemory() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	mappings, err := untouchedMappings(f, exe)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mappings {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno))
		}
	}
	return errors.Join(errs...)
}

type mapping struct{ start, end uintptr }

// untouchedMappings returns the mappings of a file that are not writable and of which
// every page is still the file's: letting go of another would lose what was written.
// It reads the format of /proc/PID/smaps (proc_pid_smaps(5)).
func untouchedMappings(r io.Reader, path string) ([]mapping, error) {
	var found []mapping
	var current *mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if name, ok := strings.CutSuffix(fields[0], ":"); ok {
			// A counter of the present mapping. Dirty, anonymous or swapped pages are not
			// the file's.
			switch name {
			case "Private_Dirty", "Shared_Dirty", "Anonymous", "Swap":
				if current != nil && (len(fields) < 2 || fields[1] != "0") {
					found, current = found[:len(found)-1], nil
				}
			}
			continue
		}
		current = nil
		if len(fields) != 6 || fields[5] != path || len(fields[1]) != 4 || fields[1][1] == 'w' || fields[1][3] != 'p' {
			continue
		}
		var m mapping
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.start, &m.end); err != nil || m.end <= m.start {
			return nil, fmt.Errorf("smaps: %q is not a range", fields[0])
		}
		found = append(found, m)
		current = &found[len(found)-1]
	}
	return found, lines.Err()
}
