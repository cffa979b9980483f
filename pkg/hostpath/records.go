// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// recordSuffix is on the names of records. What a killed call has left has tmpSuffix behind
// it.
const recordSuffix = ".json"

// records reads the records in a directory of the root, and remembers what stood in those
// that were read, by the files they stood in: a volume that is made would otherwise read
// those of all others, several times.
type records[T any] struct {
	dir     string
	isName  func(name string) bool
	readOne func(root *os.Root, name string) (T, error)

	mu   sync.Mutex
	read map[string]record[T]
}

// record and the file that it was read from.
type record[T any] struct {
	file  file
	value T
}

// file tells files apart: one that is replaced is another inode; one that is written in
// place has another time of change.
type file struct {
	device, inode uint64
	sizeBytes     int64
	changed       unix.Timespec
}

// newRecords returns a reader of those records in a directory whose names, without suffix,
// isName is true of.
func newRecords[T any](dir string, isName func(string) bool, readOne func(root *os.Root, name string) (T, error)) *records[T] {
	return &records[T]{dir: dir, isName: isName, readOne: readOne}
}

// all returns all records under a root, or an error. It opens only the files that it
// has not read yet. A directory that was never made has none.
func (c *records[T]) all(root *os.Root) (all []T, err error) {
	dir, err := root.Open(c.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[string]record[T], len(names))
	for _, full := range names {
		name, ok := strings.CutSuffix(full, recordSuffix)
		if !ok || !c.isName(name) {
			continue // a file that was not renamed into place
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), full, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since the names were read
		}
		if err != nil {
			return nil, fmt.Errorf("stat %s: %w", path.Join(c.dir, full), err)
		}
		found, known := c.read[name]
		if now := (file{st.Dev, st.Ino, st.Size, st.Ctim}); !known || found.file != now {
			value, err := c.readOne(root, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			found = record[T]{now, value}
		}
		seen[name] = found
		all = append(all, found.value)
	}
	c.read = seen
	return all, nil
}
