// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/durable"
)

// metadataFiles is a directory of the node with the copies of one volume group's metadata.
type metadataFiles struct{ dir string }

// metadataFile is one copy.
type metadataFile struct {
	name string
	kind copyKind
	// at is when it was made, in whole seconds.
	at time.Time
	// generation of the volume group, and transactionID of the thin pool.
	generation, transactionID uint64
}

type copyKind string

const (
	copyOfGroup copyKind = "volume-group"
	copyOfThin  copyKind = "thin-pool"

	// copiesKept of each kind.
	copiesKept = 2
	partSuffix = ".part"
	timeInName = "20060102T150405Z"
	// heldMarker says that a snapshot of the thin pool's metadata is held for this agent.
	heldMarker = "held"

	// mostDumpBytes bounds a dump, compressed, beside the room that there is for it.
	mostDumpBytes = 256 << 20
	shareOfRoom   = 4
)

var errDumpTooLarge = errors.New("the dump is too large to be kept")

var metadataFileName = regexp.MustCompile(`^(volume-group|thin-pool)-(\d{8}T\d{6}Z)-generation-(\d+)(?:-transaction-(\d+))?\.(?:vg|xml)\.gz$`)

func (f metadataFile) fileName() string {
	name := fmt.Sprintf("%s-%s-generation-%d", f.kind, f.at.UTC().Format(timeInName), f.generation)
	if f.kind == copyOfThin {
		return name + fmt.Sprintf("-transaction-%d.xml.gz", f.transactionID)
	}
	return name + ".vg.gz"
}

func parseMetadataFile(name string) (metadataFile, bool) {
	m := metadataFileName.FindStringSubmatch(name)
	if m == nil {
		return metadataFile{}, false
	}
	at, timeErr := time.Parse(timeInName, m[2])
	generation, err := strconv.ParseUint(m[3], 10, 64)
	f := metadataFile{name: name, kind: copyKind(m[1]), at: at, generation: generation}
	if m[4] != "" && err == nil {
		f.transactionID, err = strconv.ParseUint(m[4], 10, 64)
	}
	return f, timeErr == nil && err == nil && f.fileName() == name
}

// open makes the directory if need be, and removes what was never written to its end.
func (d metadataFiles) open() error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if durable.IsTemporary(e.Name()) || strings.HasSuffix(e.Name(), partSuffix) {
			if err := os.Remove(filepath.Join(d.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// latest returns the copies of a kind, the latest first. One of a time that has not come
// was made while the clock was wrong, before it was set right: such count as the oldest,
// for by their names they would be kept, and published, instead of all that are made since.
func (d metadataFiles) latest(kind copyKind) ([]metadataFile, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var found, early []metadataFile
	now := time.Now()
	for _, e := range slices.Backward(entries) { // sorted by name, which begins with the time
		switch f, ok := parseMetadataFile(e.Name()); {
		case !ok || f.kind != kind:
		case f.at.After(now):
			early = append(early, f)
		default:
			found = append(found, f)
		}
	}
	return append(found, early...), nil
}

// add writes a copy, compressed, and removes all but the last of its kind. finish names the
// copy after write has returned.
func (d metadataFiles) add(f metadataFile, mostBytes int64, write func(w io.Writer) error, finish func(*metadataFile)) error {
	part := filepath.Join(d.dir, string(f.kind)+partSuffix)
	err := durable.WriteStream(part, 0o600, func(w io.Writer) error {
		z := gzip.NewWriter(&limitedWriter{to: w, left: mostBytes})
		return errors.Join(write(z), z.Close())
	})
	if err != nil {
		return err
	}
	finish(&f)
	f.name = f.fileName()
	if err := os.Rename(part, filepath.Join(d.dir, f.name)); err != nil {
		return err
	}
	all, err := d.latest(f.kind)
	if err != nil {
		return err
	}
	for _, old := range all[min(copiesKept, len(all)):] {
		if err := durable.Remove(filepath.Join(d.dir, old.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d metadataFiles) read(f metadataFile) ([]byte, error) {
	return os.ReadFile(filepath.Join(d.dir, f.name))
}

func (d metadataFiles) size(f metadataFile) (int64, error) {
	info, err := os.Stat(filepath.Join(d.dir, f.name))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// room is how large a dump may become.
func (d metadataFiles) room() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return 0, err
	}
	return min(mostDumpBytes, int64(st.Bavail)*st.Bsize/shareOfRoom), nil
}

// hold notes that a snapshot is held; held reports it, and letGo forgets it.
func (d metadataFiles) hold() error {
	return durable.WriteFile(filepath.Join(d.dir, heldMarker), nil, 0o600)
}

func (d metadataFiles) held() (bool, error) {
	_, err := os.Stat(filepath.Join(d.dir, heldMarker))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d metadataFiles) letGo() error {
	if err := durable.Remove(filepath.Join(d.dir, heldMarker)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove removes all of it. It returns nil when there was nothing.
func (d metadataFiles) remove() error {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(d.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := durable.Remove(d.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// limitedWriter takes so many bytes and no more.
type limitedWriter struct {
	to   io.Writer
	left int64
}

// Write implements io.Writer.
func (w *limitedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, errDumpTooLarge
	}
	w.left -= int64(len(p))
	return w.to.Write(p)
}
