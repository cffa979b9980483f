// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
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

// trashEntry is one thing in the trash, and what it is counted by: a project, a subvolume, or
// nothing.
type trashEntry struct {
	since     time.Time
	project   uint32
	subvolume uint64
}

func (e trashEntry) counted() bool { return e.project != 0 || e.subvolume != 0 }

// trashUsage is what is counted for an entry.
func (b *Backend) trashUsage(trash int, e trashEntry) (quota.Usage, error) {
	if e.subvolume != 0 {
		return b.Groups.Usage(trash, e.subvolume)
	}
	return b.Quotas.Usage(trash, e.project)
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
	entry, err := b.countedIn(trash, name)
	if err != nil {
		entry = trashEntry{}
	}
	entry.since = time.Now()
	var st unix.Stat_t
	if unix.Fstatat(trash, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return entry
	}
	// To be renamed changes it.
	if changed := time.Unix(st.Ctim.Unix()); changed.Before(entry.since) {
		entry.since = changed
	}
	return entry
}

// tellTrash tells the observer what is in the trash.
func (b *Backend) tellTrash(root *os.Root, v *trashView) {
	v.told = time.Now()
	state := TrashState{Volumes: len(v.entries), UsedBytes: -1}
	type counter struct {
		project   uint32
		subvolume uint64
	}
	counted := map[counter]bool{}
	for _, entry := range v.entries {
		if state.Oldest.IsZero() || entry.since.Before(state.Oldest) {
			state.Oldest = entry.since
		}
		by := counter{entry.project, entry.subvolume}
		if !entry.counted() || counted[by] {
			continue
		}
		counted[by] = true
		err := withDir(root, trashDir, func(trash int) error {
			u, err := b.trashUsage(trash, entry)
			if err == nil {
				state.UsedBytes = max(0, state.UsedBytes) + u.UsedBytes
			}
			return err
		})
		if err != nil {
			continue // whoever removes it says what is wrong
		}
	}
	if state.Volumes == 0 && b.checkLimits(root) == nil {
		state.UsedBytes = 0
	}
	b.Trash.Observer.TrashWaiting(b.Root, state)
}
