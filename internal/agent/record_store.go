// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/internal/durable"
)

// storedRecord is what a recordStore keeps.
type storedRecord[T any] interface {
	*T
	// key is the name of its file.
	key() string
	// stamp sets the version in which it is written.
	stamp()
	validate() error
}

// recordStore is a directory with one file for each record, which is replaced whole and
// durably. Records are read strictly: one that is damaged, of a newer version, or another
// one's is an error that names the file, never "nothing".
type recordStore[T any, R storedRecord[T]] struct {
	dir string
	// of is what the records are of, in messages.
	of string
	// isKey tells records from what else lies in the directory.
	isKey func(key string) bool
}

func (d recordStore[T, R]) path(key string) string { return filepath.Join(d.dir, key+".json") }

// load returns nil without an error when nothing is recorded.
func (d recordStore[T, R]) load(key string) (R, error) {
	data, err := os.ReadFile(d.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of %s %s: %w", d.of, key, err)
	}
	r, err := decodeRecord[T, R](data)
	if err == nil && r.key() != key {
		err = fmt.Errorf("it is the record of %s %s", d.of, r.key())
	}
	if err != nil {
		return nil, fmt.Errorf("the record %s is damaged: %w", d.path(key), err)
	}
	return r, nil
}

func decodeRecord[T any, R storedRecord[T]](data []byte) (R, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	r := R(new(T))
	if err := dec.Decode(r); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the object")
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// save replaces the record, and is durable when it returns nil.
func (d recordStore[T, R]) save(r R) error {
	r.stamp()
	if err := r.validate(); err != nil {
		return fmt.Errorf("record %s %s: %w", d.of, r.key(), err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("record %s %s: %w", d.of, r.key(), err)
	}
	if err := durable.WriteFile(d.path(r.key()), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record %s %s: %w", d.of, r.key(), err)
	}
	return nil
}

// remove is durable when it returns nil, also when there was nothing.
func (d recordStore[T, R]) remove(key string) error {
	if err := durable.Remove(d.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s %s: %w", d.of, key, err)
	}
	return nil
}

// keys of all records, whole or damaged. The directory is made when it is missing.
func (d recordStore[T, R]) keys() ([]string, error) {
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, f := range files {
		if key, ok := strings.CutSuffix(f.Name(), ".json"); ok && d.isKey(key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// clean removes what writes that never ended have left. Nobody may be writing.
func (d recordStore[T, R]) clean() error {
	files, err := d.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if !durable.IsTemporary(f.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(d.dir, f.Name())); err != nil {
			return fmt.Errorf("clean the records of %s: %w", d.of, err)
		}
	}
	return nil
}

func (d recordStore[T, R]) files() ([]fs.DirEntry, error) {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the records of %s: %w", d.of, err)
	}
	files, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("read the records of %s: %w", d.of, err)
	}
	return files, nil
}
