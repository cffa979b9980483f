// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"os"
	"path/filepath"
)

// Files are the files of a cgroup hierarchy. Names are relative to its root, which is
// ".". Errors are those of package os.
type Files interface {
	// Directories returns the names of the groups right below one.
	Directories(name string) ([]string, error)
	Read(name string) (string, error)
	// Write writes to a file that exists, in one system call.
	Write(name, content string) error
}

// Mounted are the files of a hierarchy that is mounted at a directory.
type Mounted struct{ Root string }

var _ Files = Mounted{}

// Directories implements Files.
func (m Mounted) Directories(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.Root, name))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// Read implements Files.
func (m Mounted) Read(name string) (string, error) {
	content, err := os.ReadFile(filepath.Join(m.Root, name))
	return string(content), err
}

// Write implements Files.
func (m Mounted) Write(name, content string) error {
	file, err := os.OpenFile(filepath.Join(m.Root, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	return errors.Join(err, file.Close())
}
