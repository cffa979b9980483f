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

// copyChunkBytes is how much is read at once: large enough for a spinning disk.
const copyChunkBytes = 4 << 20

// Copy writes the first sourceBytes of a device over the beginning of another one of
// targetBytes. The ends of what the target has beyond them are zeroed as those of a new
// volume are (EdgeBytes each). It is durable when it returns nil. It may be repeated after any
// failure, and then starts anew.
//
// Both are read and written past the page cache where they can be. What is zero in the source
// is zeroed in the target by the device's own means where it has some. progress, if not nil,
// is told the bytes done. target must come from OpenExclusive. volume.ErrIdentity: one of the
// devices is not as large as was said; nothing was written.
func Copy(ctx context.Context, source, target *os.File, sourceBytes, targetBytes int64, progress func(doneBytes int64)) error {
	if sourceBytes > targetBytes {
		return fmt.Errorf("copy %d bytes of %s to %s, which has %d: %w", sourceBytes, source.Name(), target.Name(), targetBytes, volume.ErrInvalid)
	}
	if err := errors.Join(requireSize(source, sourceBytes), requireSize(target, targetBytes)); err != nil {
		return err
	}
	reader, closeReader, err := uncached(source)
	if err != nil {
		return err
	}
	defer closeReader()
	writer, closeWriter, err := direct(target)
	if err != nil {
		return err
	}
	defer closeWriter()
	buffer := alignedBuffer(copyChunkBytes)
	for done := int64(0); done < sourceBytes; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped after %d of %d bytes: %w", done, sourceBytes, context.Cause(ctx))
		}
		chunk := buffer[:min(copyChunkBytes, sourceBytes-done)]
		if _, err := io.ReadFull(io.NewSectionReader(reader, done, int64(len(chunk))), chunk); err != nil {
			return fmt.Errorf("read %d bytes at %d of %s: %w", len(chunk), done, source.Name(), err)
		}
		if firstNonZero(chunk) < 0 {
			err = Zero(ctx, target, done, int64(len(chunk)), nil)
		} else if _, err = writer.WriteAt(chunk, done); err != nil {
			err = fmt.Errorf("write %d bytes at %d of %s: %w", len(chunk), done, target.Name(), err)
		}
		if err != nil {
			return err
		}
		if done += int64(len(chunk)); progress != nil {
			progress(done)
		}
	}
	rest := targetBytes - sourceBytes
	first := min(rest, EdgeBytes)
	if err := Zero(ctx, target, sourceBytes, first, nil); err != nil {
		return err
	}
	last := min(rest-first, EdgeBytes)
	if err := Zero(ctx, target, targetBytes-last, last, nil); err != nil {
		return err
	}
	if err := target.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", target.Name(), err)
	}
	return nil
}

// direct returns a writer of the same device past the page cache; a device that has no direct
// writes, and a regular file, is written plainly.
func direct(f *os.File) (io.WriterAt, func(), error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if !isBlockDevice(info) {
		return f, func() {}, nil
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var path string
	if err := conn.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) }); err != nil {
		return nil, nil, err
	}
	writer, err := os.OpenFile(path, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		return f, func() {}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open %s past the cache: %w", f.Name(), err)
	}
	return writer, func() { _ = writer.Close() }, nil
}
