// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	markFile = "marks"
	markStep = 1 << 20
	markSize = 512
)

// mark is a sector that no volume holds by chance.
func mark(text string) []byte {
	m := []byte(strings.Repeat("berth-conformance/"+text+"/", markSize))
	return m[:markSize]
}

// writeMark writes the mark to the start, the end and every MiB of a volume, and
// to a file and a directory's file in a directory.
func writeMark(t *testing.T, loc volume.Location, text string) {
	t.Helper()
	if loc.Directory != "" {
		sub := filepath.Join(loc.Directory, "sub")
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{loc.Directory, sub} {
			if err := os.WriteFile(filepath.Join(dir, markFile), mark(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	f, err := os.OpenFile(loc.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); ; at += markStep {
		last := at+markSize >= loc.SizeBytes
		if last {
			at = loc.SizeBytes - markSize
		}
		if _, err := f.WriteAt(mark(text), at); err != nil {
			t.Fatal(err)
		}
		if last {
			break
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// hasMark reads all of a volume and reports whether the mark is anywhere in it.
func hasMark(t *testing.T, loc volume.Location, text string) bool {
	t.Helper()
	if loc.Directory == "" {
		return fileHasMark(t, loc.Device, text)
	}
	found := false
	err := filepath.WalkDir(loc.Directory, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found = found || fileHasMark(t, path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantBlankEnds checks that both ends of a block device read as zeroes.
func wantBlankEnds(t *testing.T, loc volume.Location) {
	t.Helper()
	if loc.Directory != "" {
		return
	}
	f, err := os.Open(loc.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if offset, blank, err := block.Blank(f, loc.SizeBytes); err != nil || !blank {
		t.Fatalf("a new volume holds data at offset %d (%v)", offset, err)
	}
}

func fileHasMark(t *testing.T, path, text string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, markStep)
	for {
		n, err := io.ReadFull(f, buf)
		if bytes.Contains(buf[:n], mark(text)[:markSize/2]) {
			return true
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return false
		case err != nil:
			t.Fatal(err)
		}
	}
}
