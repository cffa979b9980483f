// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TrashState is what is in the trash of a root.
type TrashState struct {
	// Volumes is how many entries there are: deleted volumes, and parts of them that were
	// too deep to be removed in their place.
	Volumes int
	// UsedBytes is what the filesystem counts of them by their quotas; negative where it
	// counts none of them.
	UsedBytes int64
	// Oldest is when the one that is there for the longest time was moved in, as far as the
	// filesystem tells: what was removed from it before this process began makes it younger.
	// Zero when the trash is empty.
	Oldest time.Time
}

// trashView is what was seen in the trash. The goroutine that empties it has it alone.
type trashView struct {
	entries map[string]trashEntry
	told    time.Time
}

type trashEntry struct {
	since   time.Time
	project uint32
}

// tellInterval is how often it is told how far the removal of one entry is.
const tellInterval = 5 * time.Second

// look takes in the names of what is in the trash, and forgets what is not.
func (v *trashView) look(b *Backend, root *os.Root, names []string) {
	entries := make(map[string]trashEntry, len(names))
	err := withDir(root, trashDir, func(trash int) error {
		for _, name := range names {
			entry, known := v.entries[name]
			if !known {
				entry = b.trashEntry(trash, name)
			}
			entries[name] = entry
		}
		return nil
	})
	if err != nil {
		return // whoever removes it says what is wrong
	}
	v.entries = entries
}

// trashEntry is one that was not seen before.
func (b *Backend) trashEntry(trash int, name string) trashEntry {
	entry := trashEntry{since: time.Now()}
	var st unix.Stat_t
	if unix.Fstatat(trash, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return entry
	}
	// To be renamed changes it.
	if changed := time.Unix(st.Ctim.Unix()); changed.Before(entry.since) {
		entry.since = changed
	}
	if b.Quotas.Check(trash) != nil {
		return entry
	}
	fd, err := openDir(trash, name)
	if err != nil {
		return entry
	}
	defer closeFD(fd)
	if project, _, err := b.Quotas.ProjectOf(fd); err == nil && project >= firstProject && project <= lastProject {
		entry.project = project
	}
	return entry
}

// tellTrash tells the observer what is in the trash.
func (b *Backend) tellTrash(root *os.Root, v *trashView) {
	v.told = time.Now()
	state := TrashState{Volumes: len(v.entries), UsedBytes: -1}
	counted := map[uint32]bool{}
	for _, entry := range v.entries {
		if state.Oldest.IsZero() || entry.since.Before(state.Oldest) {
			state.Oldest = entry.since
		}
		if entry.project == 0 || counted[entry.project] {
			continue
		}
		counted[entry.project] = true
		if used := b.usedBytes(root, entry.project); used >= 0 {
			state.UsedBytes = max(0, state.UsedBytes) + used
		}
	}
	if state.Volumes == 0 && b.checkLimits(root) == nil {
		state.UsedBytes = 0
	}
	b.Trash.Observer.TrashWaiting(b.Root, state)
}
