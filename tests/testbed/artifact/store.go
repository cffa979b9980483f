// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package artifact keeps the products of slow build steps, each under a name
// that contains the hash of everything it was made from. A product is either
// wholly there or not there at all, so a build that was killed costs only its
// own time.
package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Store is a folder of products.
type Store struct {
	// Dir is the folder, made when the first product is.
	Dir string
}

// keepVersions and keepFor say what Prune spares: the versions of each product
// that were used last, and all that were used lately, perhaps by a testbed that
// still runs.
const (
	keepVersions = 2
	keepFor      = 48 * time.Hour
)

// Key identifies a product by what it is made from.
type Key struct {
	name  string
	parts []string
}

// NewKey starts the key of the product called name. The name may contain
// letters, digits, dots and dashes.
func NewKey(name string) *Key { return &Key{name: name} }

// Add adds one input: a label, so that two inputs never run into each other,
// and its content.
func (k *Key) Add(label, content string) *Key {
	k.parts = append(k.parts, fmt.Sprintf("%s\x00%d\x00%s", label, len(content), content))
	return k
}

// AddFile adds the content of a file on disk.
func (k *Key) AddFile(label, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("hash input %s: %w", label, err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("hash input %s: %w", label, err)
	}
	k.Add(label, hex.EncodeToString(sum.Sum(nil)))
	return nil
}

// AddFS adds every regular file of a tree: its path and content.
func (k *Key) AddFS(label string, tree fs.FS) error {
	return fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(tree, path)
		if err != nil {
			return fmt.Errorf("hash input %s/%s: %w", label, path, err)
		}
		k.Add(label+"/"+path, string(content))
		return nil
	})
}

// String returns the name and the first 12 hexadecimal digits of the hash of
// all inputs, in the order they were added.
func (k *Key) String() string {
	sum := sha256.New()
	for _, part := range k.parts {
		fmt.Fprintf(sum, "%d\x00%s", len(part), part)
	}
	return k.name + "-" + hex.EncodeToString(sum.Sum(nil))[:12]
}

// Path returns the folder where the product of a key is or will be.
func (s *Store) Path(key *Key) string { return filepath.Join(s.Dir, key.String()) }

// Has tells whether the product is there.
func (s *Store) Has(key *Key) bool {
	_, err := os.Stat(s.Path(key))
	return err == nil
}

// Get returns the folder of the product, and calls build to fill an empty
// folder if there is none yet. The folder takes its name only when build
// returned nil; otherwise it is removed. Two processes that want the same
// product wait for one build.
func (s *Store) Get(key *Key, build func(dir string) error) (dir string, err error) {
	final := s.Path(key)
	if s.touch(final) {
		return final, nil
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return "", err
	}
	// The lock's file stays: a waiter would hold the lock of a removed one.
	lock, err := os.OpenFile(filepath.Join(s.Dir, "."+key.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if s.touch(final) { // built while we waited
		return final, nil
	}
	partial := final + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", err
	}
	if err := build(partial); err != nil {
		return "", errors.Join(err, os.RemoveAll(partial))
	}
	if err := os.Rename(partial, final); err != nil {
		return "", err
	}
	return final, nil
}

// touch notes that a product was used and tells whether it is there.
func (s *Store) touch(path string) bool {
	now := time.Now()
	return os.Chtimes(path, now, now) == nil
}

// Prune removes the versions of products that were not used for long, beside
// the last ones of each.
func (s *Store) Prune() error {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	versions := map[string][]fs.FileInfo{}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !entry.IsDir() || strings.HasSuffix(entry.Name(), ".partial") {
			continue
		}
		cut := strings.LastIndexByte(entry.Name(), '-')
		if cut < 0 {
			continue
		}
		versions[entry.Name()[:cut]] = append(versions[entry.Name()[:cut]], info)
	}
	var failed []error
	for _, infos := range versions {
		sort.Slice(infos, func(a, b int) bool { return infos[a].ModTime().After(infos[b].ModTime()) })
		for _, info := range infos[min(keepVersions, len(infos)):] {
			if time.Since(info.ModTime()) > keepFor {
				failed = append(failed, os.RemoveAll(filepath.Join(s.Dir, info.Name())))
			}
		}
	}
	return errors.Join(failed...)
}
