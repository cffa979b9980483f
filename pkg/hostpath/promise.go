// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// promise is what a volume was promised. It makes the volume exist.
type promise struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
	// Project is what the filesystem counts the volume's files by, and limits them to
	// SizeBytes; 0 where it limits nothing.
	Project uint32    `json:"project,omitempty"`
	Created time.Time `json:"created"`

	// moved: it has another project than is written down.
	moved bool
}

const promiseSuffix = ".json"

func promiseFile(id string) string { return promiseDir + "/" + id + promiseSuffix }
func volumeDir(id string) string   { return volumesDir + "/" + id }

// readPromise returns what the volume was promised, fs.ErrNotExist when it was
// promised nothing.
func readPromise(root *os.Root, id string) (promise, error) {
	data, err := root.ReadFile(promiseFile(id))
	if err != nil {
		return promise{}, err
	}
	var p promise
	if err := json.Unmarshal(data, &p); err != nil {
		return promise{}, fmt.Errorf("read %s: %w", promiseFile(id), err)
	}
	if p.ID != id || p.SizeBytes <= 0 {
		return promise{}, fmt.Errorf("read %s: it is the promise of %q over %d bytes: %w", promiseFile(id), p.ID, p.SizeBytes, volume.ErrIdentity)
	}
	return p, nil
}

// promises remembers what stood in the promises that were read, by the files they stood
// in: a volume that is made would otherwise read those of all others, several times.
type promises struct {
	mu   sync.Mutex
	read map[string]readPromiseFile
}

// readPromiseFile is a promise and the file that it was read from. A file that is
// replaced is another inode; one that is written in place has another time of change.
type readPromiseFile struct {
	device, inode uint64
	sizeBytes     int64
	changed       unix.Timespec
	promise       promise
}

// all returns all promises under a root, or an error. It opens only the files that it
// has not read yet.
func (c *promises) all(root *os.Root) (all []promise, err error) {
	dir, err := root.Open(promiseDir)
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
	seen := make(map[string]readPromiseFile, len(names))
	for _, name := range names {
		id, ok := strings.CutSuffix(name, promiseSuffix)
		if !ok || volume.ValidateID(id) != nil {
			continue // a file that was not renamed into place
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since the names were read
		}
		if err != nil {
			return nil, fmt.Errorf("stat %s: %w", promiseFile(id), err)
		}
		file, known := c.read[id]
		if now := (readPromiseFile{st.Dev, st.Ino, st.Size, st.Ctim, file.promise}); !known || file != now {
			now.promise, err = readPromise(root, id)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			file = now
		}
		seen[id] = file
		all = append(all, file.promise)
	}
	c.read = seen
	return all, nil
}
