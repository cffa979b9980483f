// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
)

// headerCopiesBytes is where both copies of the header lie; key slots follow.
const headerCopiesBytes = 2 * smallestCopyBytes

// DestroyKeys makes the content of an encrypted device unreadable for ever, whoever knows
// a passphrase: it overwrites the key slots, and then the header, with random bytes. It
// needs no program. It returns when that is on the disk, and may be repeated.
//
// The caller has proven that it is the right device. What other devices share with this
// one, as snapshots do, is not touched: they have key slots of their own.
//
// volume.ErrInUse: the device is open, or somebody holds it; nothing was touched.
func (c *Client) DestroyKeys(ctx context.Context, device string) error {
	err := c.host.InMountNamespace(ctx, func() (err error) {
		f, err := block.OpenExclusive(device)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		size, err := block.SizeBytes(f)
		if err != nil {
			return err
		}
		end := min(size, HeaderBytes)
		// The slots first: until they are gone, a header is needed to find them again.
		for _, piece := range [][2]int64{{min(headerCopiesBytes, end), end}, {0, min(headerCopiesBytes, end)}} {
			if err := overwrite(ctx, f, piece[0], piece[1]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroy the key slots of %s: %w", device, err)
	}
	return nil
}

// overwrite puts random bytes in the place of a range, durably.
//
// A full thin pool has no room for new content of what snapshots share. Then the range is
// given back instead: what is the device's own was overwritten in place before.
func overwrite(ctx context.Context, f *os.File, start, end int64) error {
	const pieceBytes = 1 << 20
	err := func() error {
		for at := start; at < end; at += pieceBytes {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := io.CopyN(io.NewOffsetWriter(f, at), rand.Reader, min(pieceBytes, end-at)); err != nil {
				return fmt.Errorf("write at byte %d: %w", at, err)
			}
		}
		return f.Sync()
	}()
	if errors.Is(err, unix.ENOSPC) {
		if err := block.Discard(ctx, f, start, end-start, nil); err != nil {
			return err
		}
		return f.Sync()
	}
	return err
}
