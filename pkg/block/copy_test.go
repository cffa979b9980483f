// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

func copyFile(t *testing.T, content []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestCopy(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	random := rand.New(rand.NewPCG(1, 2))
	source := make([]byte, 11*mib)
	for i := range source[:5*mib] {
		source[i] = byte(random.Uint32())
	}
	source[len(source)-1] = 'e' // behind a piece that is zero
	for name, targetBytes := range map[string]int64{"of its size": 11 * mib, "a bit larger": 13 * mib, "much larger": 32 * mib} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := copyFile(t, source), copyFile(t, bytes.Repeat([]byte{'r'}, int(targetBytes)))
			var told []int64
			if err := block.Copy(t.Context(), from, to, 11*mib, targetBytes, func(done int64) { told = append(told, done) }); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(to.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:len(source)], source) {
				t.Error("the copy is another")
			}
			rest := got[len(source):]
			edge := min(len(rest), block.EdgeBytes)
			if zero := make([]byte, edge); !bytes.Equal(rest[:edge], zero) || !bytes.Equal(rest[len(rest)-edge:], zero) {
				t.Error("the ends of the rest are not zero")
			}
			if len(told) != 3 || told[2] != 11*mib {
				t.Errorf("told of %d", told)
			}
		})
	}
	t.Run("what cannot be", func(t *testing.T) {
		t.Parallel()
		from, to := copyFile(t, source), copyFile(t, make([]byte, 4*mib))
		if err := block.Copy(t.Context(), from, to, 11*mib, 4*mib, nil); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("to a smaller one: %v", err)
		}
		if err := block.Copy(t.Context(), from, to, 3*mib, 4*mib, nil); !errors.Is(err, volume.ErrIdentity) {
			t.Errorf("of one that is larger than was said: %v", err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := block.Copy(gone, to, copyFile(t, make([]byte, 4*mib)), 4*mib, 4*mib, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
