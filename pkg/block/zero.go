// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// ErrDiscardUnsupported: the device cannot discard. Nothing was changed.
var ErrDiscardUnsupported = errors.New("the device does not support discard")

// eraseChunkBytes is the range of one ioctl: small enough that a context that
// ends is obeyed within a second on a slow disk, large enough to cost nothing.
const eraseChunkBytes = 64 << 20

// Zero overwrites a range with zeroes, by the device's own write-zeroes where it
// has it (BLKZEROOUT, which falls back to writing in the kernel), by writing for
// regular files. The range must be aligned to the logical block size. It may be
// repeated. progress, if not nil, is told the bytes done so far.
//
// The file must be opened for writing, by OpenExclusive for a disk. Nothing is
// durable before the caller syncs; Wipe does.
func Zero(ctx context.Context, f *os.File, offset, lengthBytes int64, progress func(doneBytes int64)) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	plainWrite := !isBlockDevice(info)
	return inChunks(ctx, offset, lengthBytes, progress, func(start, length int64) error {
		if !plainWrite {
			err := ioctlPointer(f, unix.BLKZEROOUT, &[2]uint64{uint64(start), uint64(length)})
			if err == nil {
				return nil
			}
			if !unsupported(err) {
				return fmt.Errorf("zero %d bytes at %d of %s: %w", length, start, f.Name(), err)
			}
			plainWrite = true
		}
		return writeZeroes(ctx, f, start, length)
	})
}

// Discard tells a device that a range is not needed any more (BLKDISCARD). What
// it reads as afterwards is up to the device: it is no erasure by itself. The
// range must be aligned to the logical block size. It may be repeated.
// ErrDiscardUnsupported: the device cannot.
func Discard(ctx context.Context, f *os.File, offset, lengthBytes int64, progress func(doneBytes int64)) error {
	return inChunks(ctx, offset, lengthBytes, progress, func(start, length int64) error {
		err := ioctlPointer(f, unix.BLKDISCARD, &[2]uint64{uint64(start), uint64(length)})
		switch {
		case err == nil:
			return nil
		case unsupported(err):
			return fmt.Errorf("discard on %s: %w", f.Name(), ErrDiscardUnsupported)
		}
		return fmt.Errorf("discard %d bytes at %d of %s: %w", length, start, f.Name(), err)
	})
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
}

func inChunks(ctx context.Context, offset, lengthBytes int64, progress func(int64), erase func(start, length int64) error) error {
	if offset < 0 || lengthBytes < 0 {
		return fmt.Errorf("erase %d bytes at %d: a negative range", lengthBytes, offset)
	}
	for done := int64(0); done < lengthBytes; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped after %d of %d bytes: %w", done, lengthBytes, err)
		}
		length := min(eraseChunkBytes, lengthBytes-done)
		if err := erase(offset+done, length); err != nil {
			return err
		}
		done += length
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

const (
	// sweepChunkBytes is what ZeroContent reads at once: most of a thin volume has no content
	// and reads as fast as the kernel can fill memory, so that the requests are what costs.
	sweepChunkBytes = 4 << 20
	// sweepPieces is how many pieces are written before they are read back: what is remembered
	// of them must not grow with the volume.
	sweepPieces = 1024
)

// ZeroContent overwrites with zeroes those pieces of a device that do not read so
// already: a thin volume is not filled by it. What it wrote is durable, and read back,
// when it returns nil; everything else was read, past the page cache, and is zero. It may
// be repeated. f must come from OpenExclusive. volume.ErrNotBlank: a piece that was
// overwritten does not read as zeroes.
func ZeroContent(ctx context.Context, f *os.File, sizeBytes int64) error {
	if err := requireSize(f, sizeBytes); err != nil {
		return err
	}
	reader, closeReader, err := uncached(f)
	if err != nil {
		return err
	}
	defer closeReader()
	buffer := alignedBuffer(int(min(sweepChunkBytes, sizeBytes)))
	var written []extent
	for start := int64(0); start < sizeBytes; start += sweepChunkBytes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("zero the content of %s: stopped after %d of %d bytes: %w", f.Name(), start, sizeBytes, err)
		}
		chunk := buffer[:min(sweepChunkBytes, sizeBytes-start)]
		if _, err := readWhole(reader, start, chunk); err != nil {
			return fmt.Errorf("zero the content of %s: %w", f.Name(), err)
		}
		content := contentOf(chunk, start)
		for _, piece := range content {
			if err := Zero(ctx, f, piece.start, piece.lengthBytes, nil); err != nil {
				return fmt.Errorf("zero the content of %s: %w", f.Name(), err)
			}
		}
		if written = append(written, content...); len(written) >= sweepPieces {
			if err := requireZeroed(ctx, f, reader, written); err != nil {
				return err
			}
			written = written[:0]
		}
	}
	return requireZeroed(ctx, f, reader, written)
}

// extent is a range of a device, in bytes.
type extent struct{ start, lengthBytes int64 }

// requireZeroed makes durable what was written, and reads it back.
func requireZeroed(ctx context.Context, f *os.File, reader io.ReaderAt, written []extent) error {
	if len(written) == 0 {
		return nil
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	for _, piece := range written {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read back %s: stopped at %d: %w", f.Name(), piece.start, err)
		}
		offset, zero, err := zeroRange(reader, piece.start, piece.lengthBytes)
		if err != nil {
			return fmt.Errorf("read back %s: %w", f.Name(), err)
		}
		if !zero {
			return fmt.Errorf("%s: data at offset %d after the wipe: %w", f.Name(), offset, volume.ErrNotBlank)
		}
	}
	return nil
}

// contentOf returns where the chunk of a device that begins at start is not zero, in pieces
// of readChunkBytes, those side by side as one.
func contentOf(chunk []byte, start int64) []extent {
	var content []extent
	for at := 0; at < len(chunk); at += readChunkBytes {
		piece := chunk[at:min(at+readChunkBytes, len(chunk))]
		if firstNonZero(piece) < 0 {
			continue
		}
		found := extent{start: start + int64(at), lengthBytes: int64(len(piece))}
		if last := len(content) - 1; last >= 0 && content[last].start+content[last].lengthBytes == found.start {
			content[last].lengthBytes += found.lengthBytes
		} else {
			content = append(content, found)
		}
	}
	return content
}

func writeZeroes(ctx context.Context, f *os.File, offset, lengthBytes int64) error {
	zeroes := make([]byte, min(readChunkBytes, lengthBytes))
	for done := int64(0); done < lengthBytes; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.WriteAt(zeroes[:min(int64(len(zeroes)), lengthBytes-done)], offset+done)
		if err != nil {
			return fmt.Errorf("write zeroes at %d of %s: %w", offset+done, f.Name(), err)
		}
		done += int64(n)
	}
	return nil
}
