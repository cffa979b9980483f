// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package durable writes and removes small files so that the change is on the
// disk, whole, when the call returns: a reader after a loss of power finds the old
// content or the new one, never a part.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// temporaryPrefix marks files that were being written. It starts with a dot so
// that no name of a real file collides with it.
const temporaryPrefix = ".durable-"

// IsTemporary reports whether a file name belongs to a write that never finished.
// Such a file means nothing and may be removed while nobody writes.
func IsTemporary(name string) bool { return strings.HasPrefix(name, temporaryPrefix) }

// WriteFile replaces path with data: temporary file, fsync, rename, fsync of the
// directory. When it fails, path has the old content or, if only the last step
// failed, maybe the new one.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return WriteStream(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteStream is WriteFile of what write writes. When that returns an error, so does
// WriteStream, and path stays as it was.
func WriteStream(path string, mode fs.FileMode, write func(w io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporaryPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	if err := writeAndSync(f, mode, write); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeAndSync closes f in every case.
func writeAndSync(f *os.File, mode fs.FileMode, write func(w io.Writer) error) error {
	err := write(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Remove removes path and makes that durable. A file that is not there is
// fs.ErrNotExist, after the directory was synced all the same: an earlier removal
// may not have been.
func Remove(path string) error {
	removeErr := os.Remove(path)
	if removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
		return removeErr
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return removeErr
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
