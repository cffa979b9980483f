// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// sampleCount ranges between head and tail are read back after a wipe by zeroes.
const sampleCount = 64

// sampleBytes is the length of one of them.
const sampleBytes = 64 << 10

// Wipe makes the content of a disk unreadable as the policy says, syncs it, lets
// the kernel read the (now absent) partition table again, and verifies the result
// by VerifyWiped:
//
//   - zero: every byte is overwritten;
//   - discard: everything is discarded, head and tail are zeroed;
//     ErrDiscardUnsupported, with nothing changed, where the device cannot;
//   - cryptoErase: an NVMe disk deletes the key that it encrypts everything with, head
//     and tail are zeroed; ErrCryptoEraseUnsupported, with nothing changed, where
//     CryptoErasable is not true;
//   - signatures: head and tail (EdgeBytes each) are zeroed;
//   - none: nothing is done and nothing is verified.
//
// f must come from OpenExclusive, and the caller must have proven that the disk is
// the right one: nothing is checked here. Wipe may be repeated after any failure
// and then starts anew. progress is told the bytes done out of sizeBytes.
func Wipe(ctx context.Context, f *os.File, sizeBytes int64, policy volume.WipePolicy, progress func(doneBytes int64)) error {
	if err := requireSize(f, sizeBytes); err != nil {
		return err
	}
	switch policy {
	case volume.WipeNone:
		return nil
	case volume.WipeZero:
		// Whoever has a partition open is found out before the hours that follow, and not
		// after them: there is none any more then.
		if err := zeroEdges(ctx, f, sizeBytes); err != nil {
			return err
		}
		if err := rereadPartitions(ctx, f); err != nil {
			return err
		}
		if err := Zero(ctx, f, 0, sizeBytes, progress); err != nil {
			return err
		}
	case volume.WipeDiscard:
		if err := Discard(ctx, f, 0, sizeBytes, progress); err != nil {
			return err
		}
		if err := zeroEdges(ctx, f, sizeBytes); err != nil {
			return err
		}
	case volume.WipeCryptoErase:
		nsid, admin, err := nvmeNamespace(f)
		if err != nil {
			return fmt.Errorf("wipe %s: %w", f.Name(), err)
		}
		if err := cryptoErase(f, sizeBytes, nsid, admin); err != nil {
			return fmt.Errorf("wipe %s: %w", f.Name(), err)
		}
		if err := zeroEdges(ctx, f, sizeBytes); err != nil {
			return err
		}
	case volume.WipeSignatures:
		if err := zeroEdges(ctx, f, sizeBytes); err != nil {
			return err
		}
	default:
		return fmt.Errorf("wipe %s: unknown policy %q: %w", f.Name(), policy, volume.ErrInvalid)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	if err := VerifyWiped(ctx, f, sizeBytes, policy); err != nil {
		return err
	}
	return rereadPartitions(ctx, f)
}

// VerifyWiped reads back, past the page cache, what Wipe promised: head and tail
// of the disk are zero, and after a wipe by zeroes also samples spread evenly over
// the rest. volume.ErrNotBlank names the first byte that is not. With policy none
// nothing was promised, and the disk is blank only if it is.
func VerifyWiped(ctx context.Context, f *os.File, sizeBytes int64, policy volume.WipePolicy) error {
	if err := requireSize(f, sizeBytes); err != nil {
		return err
	}
	reader, closeReader, err := uncached(f)
	if err != nil {
		return err
	}
	defer closeReader()
	offset, blank, err := Blank(reader, sizeBytes)
	if err == nil && blank && policy == volume.WipeZero {
		offset, blank, err = blankSamples(ctx, reader, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("read back %s: %w", f.Name(), err)
	}
	if !blank {
		return fmt.Errorf("%s: data at offset %d after the wipe: %w", f.Name(), offset, volume.ErrNotBlank)
	}
	return nil
}

func blankSamples(ctx context.Context, r io.ReaderAt, sizeBytes int64) (offset int64, blank bool, err error) {
	middle := sizeBytes - 2*EdgeBytes
	if middle <= 0 {
		return 0, true, nil
	}
	if middle <= sampleCount*sampleBytes {
		return zeroRange(r, EdgeBytes, middle)
	}
	for i := range int64(sampleCount) {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		// Aligned to 64 KiB, a multiple of every logical block size.
		start := (EdgeBytes + middle/sampleCount*i) / sampleBytes * sampleBytes
		offset, blank, err := zeroRange(r, start, sampleBytes)
		if err != nil || !blank {
			return offset, blank, err
		}
	}
	return 0, true, nil
}

func zeroEdges(ctx context.Context, f *os.File, sizeBytes int64) error {
	if sizeBytes <= 2*EdgeBytes {
		return Zero(ctx, f, 0, sizeBytes, nil)
	}
	if err := Zero(ctx, f, 0, EdgeBytes, nil); err != nil {
		return err
	}
	return Zero(ctx, f, sizeBytes-EdgeBytes, EdgeBytes, nil)
}

// requireSize refuses a size that is not the device's: a tail that is not at the
// end would leave the signatures there in place.
func requireSize(f *os.File, sizeBytes int64) error {
	size, err := SizeBytes(f)
	if err != nil {
		return err
	}
	if size != sizeBytes || size == 0 {
		return fmt.Errorf("%s has %d bytes, %d were expected: %w", f.Name(), size, sizeBytes, volume.ErrIdentity)
	}
	return nil
}

// uncached returns a reader of the same device that does not see the page cache:
// a second, read-only descriptor with O_DIRECT. A device that has no direct reads,
// and a regular file, is read plainly after its cache was dropped.
func uncached(f *os.File) (io.ReaderAt, func(), error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	if !isBlockDevice(info) {
		err := conn.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) })
		return f, func() {}, err
	}
	if err := ioctl(f, unix.BLKFLSBUF, nil); err != nil {
		return nil, nil, fmt.Errorf("flush the buffers of %s: %w", f.Name(), err)
	}
	var path string
	if err := conn.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) }); err != nil {
		return nil, nil, err
	}
	direct, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		return f, func() {}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open %s past the cache: %w", f.Name(), err)
	}
	return direct, func() { _ = direct.Close() }, nil
}

// alignedBuffer is aligned to a page, as O_DIRECT asks.
func alignedBuffer(lengthBytes int) []byte {
	const page = 4096
	raw := make([]byte, lengthBytes+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (page - 1)
	return raw[skip : skip+lengthBytes : skip+lengthBytes]
}

// rereadWait is how long somebody may have a partition open that is to be forgotten: lvm and
// others who look for what is theirs have it for some milliseconds.
const rereadWait = 10 * time.Second

// rereadPartitions lets the kernel forget the partitions of a wiped disk. Devices
// that cannot have any (partitions, loop without partscan, device-mapper) say so
// with EINVAL or ENOTTY. volume.ErrInUse: a program has one of them open, which nothing
// that was opened exclusively forbids.
func rereadPartitions(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, rereadWait)
	defer cancel()
	for {
		err := ioctl(f, unix.BLKRRPART, nil)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), unsupported(err):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("read the partition table of %s again: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: a program has a partition of %s open: read its table again: %w", volume.ErrInUse, f.Name(), err)
		case <-time.After(lockRetry):
		}
	}
}
