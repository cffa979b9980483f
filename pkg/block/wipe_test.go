// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

const wipeSize = 4*block.EdgeBytes + 8192

// dirty fills a device with a pattern, past the cache.
func dirty(t *testing.T, node string, sizeBytes int64) {
	t.Helper()
	f, err := os.OpenFile(node, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, int(sizeBytes)), 0); err != nil {
		t.Fatal(err)
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	middle := int64(2 * block.EdgeBytes)
	cases := []struct {
		policy     volume.WipePolicy
		edgesZero  bool
		middleZero bool
	}{
		{volume.WipeZero, true, true},
		{volume.WipeDiscard, true, true}, // a loop device punches holes
		{volume.WipeSignatures, true, false},
		{volume.WipeNone, false, false},
	}
	for _, c := range cases {
		t.Run(string(c.policy), func(t *testing.T) {
			t.Parallel()
			node, _ := loopDevice(t, wipeSize)
			dirty(t, node, wipeSize)
			f, err := block.OpenExclusive(node)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			size, err := block.SizeBytes(f)
			if err != nil || size != wipeSize {
				t.Fatalf("SizeBytes = %d, %v", size, err)
			}
			for range 2 { // repeating it is harmless
				if err := block.Wipe(t.Context(), f, size, c.policy, nil); err != nil {
					t.Fatal(err)
				}
			}
			content, err := os.ReadFile(node)
			if err != nil {
				t.Fatal(err)
			}
			zero := func(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
			if got := zero(content[:block.EdgeBytes]) && zero(content[wipeSize-block.EdgeBytes:]); got != c.edgesZero {
				t.Errorf("head and tail zero = %v, want %v", got, c.edgesZero)
			}
			if got := zero(content[middle : middle+4096]); got != c.middleZero {
				t.Errorf("middle zero = %v, want %v", got, c.middleZero)
			}
			err = block.VerifyWiped(t.Context(), f, size, volume.WipeZero)
			if wantErr := !c.middleZero; errors.Is(err, volume.ErrNotBlank) != wantErr {
				t.Errorf("VerifyWiped(zero) = %v, want ErrNotBlank = %v", err, wantErr)
			}
		})
	}
}

func TestWipeRefuses(t *testing.T) {
	t.Parallel()
	node, _ := loopDevice(t, wipeSize)
	dirty(t, node, wipeSize)
	f, err := block.OpenExclusive(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := block.Wipe(t.Context(), f, wipeSize-4096, volume.WipeZero, nil); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("another size: %v, want ErrIdentity", err)
	}
	if err := block.Wipe(t.Context(), f, wipeSize, "shred", nil); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("unknown policy: %v, want ErrInvalid", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := block.Wipe(ctx, f, wipeSize, volume.WipeZero, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v, want context.Canceled", err)
	}
	content, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(content, []byte{0xa5}) != wipeSize {
		t.Error("a refused wipe changed the disk")
	}
}

func TestVerifyWipedSeesOneByte(t *testing.T) {
	t.Parallel()
	for _, offset := range []int64{12345, wipeSize - 1} {
		node, _ := loopDevice(t, wipeSize)
		f, err := block.OpenExclusive(node)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if err := block.VerifyWiped(t.Context(), f, wipeSize, volume.WipeZero); err != nil {
			t.Fatalf("a fresh disk: %v", err)
		}
		if _, err := f.WriteAt([]byte{1}, offset); err != nil {
			t.Fatal(err)
		}
		if err := block.VerifyWiped(t.Context(), f, wipeSize, volume.WipeSignatures); !errors.Is(err, volume.ErrNotBlank) {
			t.Errorf("one byte at %d: %v, want ErrNotBlank", offset, err)
		}
	}
}

func TestZeroRange(t *testing.T) {
	t.Parallel()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(bytes.Repeat([]byte{7}, 5<<20)); err != nil {
		t.Fatal(err)
	}
	var last int64
	if err := block.Zero(t.Context(), file, 4096, 3<<20, func(done int64) { last = done }); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{7}, 5<<20)
	clear(want[4096 : 4096+3<<20])
	if !bytes.Equal(content, want) {
		t.Error("Zero changed something else than its range")
	}
	if last != 3<<20 {
		t.Errorf("progress ended at %d", last)
	}
	if err := block.Discard(t.Context(), file, 0, 4096, nil); !errors.Is(err, block.ErrDiscardUnsupported) {
		t.Errorf("Discard on a file: %v, want ErrDiscardUnsupported", err)
	}
}

// What is sparse stays sparse: only what held something is written to.
func TestZeroContent(t *testing.T) {
	t.Parallel()
	const sizeBytes = 64<<20 + 4096
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{0, 4<<20 - 1, 4 << 20, 4<<20 + 256<<10, 20<<20 + 7, sizeBytes - 1} {
		if _, err := file.WriteAt([]byte{1}, offset); err != nil {
			t.Fatal(err)
		}
	}
	if err := block.ZeroContent(t.Context(), file, sizeBytes-1); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("another size: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := block.ZeroContent(ended, file, sizeBytes); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	if err := block.ZeroContent(t.Context(), file, sizeBytes); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, make([]byte, sizeBytes)) {
		t.Error("something is left")
	}
	var st unix.Stat_t
	if err := unix.Stat(file.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if taken := st.Blocks * 512; taken > 3<<20 {
		t.Errorf("the file takes %d bytes now", taken)
	}
}

// A partition that a program has open is found out before the disk is overwritten, and one
// that was open for a moment is waited for.
func TestWipeWhileAPartitionIsOpen(t *testing.T) {
	const sizeBytes, middle = 64 << 20, 32 << 20
	node, _ := loopDevice(t, sizeBytes, "--partscan")
	run(t, "addpart", node, "1", "2048", "20480")
	disk, err := block.OpenExclusive(node)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := disk.WriteAt([]byte{1}, middle); err != nil {
		t.Fatal(err)
	}
	partition, err := block.OpenReadOnly(node + "p1")
	if err != nil {
		t.Fatal(err)
	}
	defer partition.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := block.Wipe(ctx, disk, sizeBytes, volume.WipeZero, nil); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("while a partition is open: %v, want ErrInUse", err)
	}
	content := make([]byte, 1)
	if _, err := disk.ReadAt(content, middle); err != nil || content[0] != 1 {
		t.Errorf("it was overwritten all the same: %v, %v", content, err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = partition.Close() })
	if err := block.Wipe(t.Context(), disk, sizeBytes, volume.WipeZero, nil); err != nil {
		t.Errorf("when it is closed: %v", err)
	}
	if _, err := block.OpenReadOnly(node + "p1"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("the partition is still there: %v", err)
	}
}
