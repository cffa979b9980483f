// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

func TestBlank(t *testing.T) {
	t.Parallel()
	const size = 3*block.EdgeBytes + 4096
	cases := []struct {
		name  string
		size  int64
		dirty int64 // offset of one byte that is not zero, -1 for none
		blank bool
	}{
		{"zeroes", size, -1, true},
		{"first byte", size, 0, false},
		{"one byte in the middle of the first MiB", size, 524_287, false},
		{"last byte of the head", size, block.EdgeBytes - 1, false},
		{"between head and tail", size, block.EdgeBytes + 17, true},
		{"first byte of the tail", size, size - block.EdgeBytes, false},
		{"last byte", size, size - 1, false},
		{"small, zeroes", 4096, -1, true},
		{"small, last byte", 4096, 4095, false},
		{"as large as both edges, in the middle", 2 * block.EdgeBytes, block.EdgeBytes, false},
		{"of odd length", block.EdgeBytes + 513, block.EdgeBytes + 512, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			content := make([]byte, c.size)
			if c.dirty >= 0 {
				content[c.dirty] = 0x80
			}
			offset, blank, err := block.Blank(bytes.NewReader(content), c.size)
			if err != nil {
				t.Fatal(err)
			}
			if blank != c.blank {
				t.Fatalf("blank = %v, want %v", blank, c.blank)
			}
			if !c.blank && offset != c.dirty {
				t.Errorf("offset = %d, want %d", offset, c.dirty)
			}
		})
	}
}

// failingAt reads zeroes and fails from an offset on.
type failingAt int64

var errMedium = errors.New("medium error")

func (f failingAt) ReadAt(p []byte, offset int64) (int, error) {
	if offset+int64(len(p)) > int64(f) {
		return 0, errMedium
	}
	clear(p)
	return len(p), nil
}

func TestBlankErrorIsNeverBlank(t *testing.T) {
	t.Parallel()
	const size = 4 * block.EdgeBytes
	for _, at := range []int64{0, 512, block.EdgeBytes - 1, size - block.EdgeBytes, size - 1} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			_, blank, err := block.Blank(failingAt(at), size)
			if !errors.Is(err, errMedium) || blank {
				t.Errorf("blank = %v, err = %v, want an error", blank, err)
			}
		})
	}
	for _, size := range []int64{0, -1} {
		if _, blank, err := block.Blank(bytes.NewReader(nil), size); err == nil || blank {
			t.Errorf("size %d: blank = %v, err = %v, want an error", size, blank, err)
		}
	}
	if _, blank, err := block.Blank(bytes.NewReader(make([]byte, 100)), 200); err == nil || blank {
		t.Errorf("a device that ends early: blank = %v, err = %v, want an error", blank, err)
	}
}
