// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Content is by what a disk is told, where it can be, from another one that has come into its
// slot with the same serial number and size. Of the zero value nothing is known to anybody: the
// disk is blank, was wiped in part, or holds what libblkid has no name for.
type Content struct {
	// Type as libblkid names it (ext4, crypto_LUKS, LVM2_member), of a partition table (gpt, dos), or
	// Contradiction.
	Type string
	// UUID of that; empty where it has none.
	UUID string
}

// Contradiction is the type of several signatures that contradict each other.
const Contradiction = "contradiction"

// ContentOf what libblkid has found.
func ContentOf(c block.Content) Content {
	switch {
	case c.Ambivalent:
		return Content{Type: Contradiction}
	case c.Type == "" && c.PartitionTable != "":
		return Content{Type: c.PartitionTable, UUID: c.PartitionTableUUID}
	}
	return Content{Type: c.Type, UUID: c.UUID}
}

// Refute returns volume.ErrIdentity when a disk that holds what is seen cannot be one that held c
// and of which any part may have been wiped since.
func (c Content) Refute(seen Content) error {
	if seen == (Content{}) || c.Type == seen.Type && strings.EqualFold(c.UUID, seen.UUID) {
		return nil
	}
	return fmt.Errorf("on it is %s, and it held %s: %w", seen, c, volume.ErrIdentity)
}

func (c Content) String() string {
	switch {
	case c.Type == Contradiction:
		return "signatures that contradict each other"
	case c == Content{}:
		return "nothing that is known"
	case c.UUID == "":
		return c.Type
	}
	return c.Type + " with UUID " + c.UUID
}

// proveContent proves, while the disk is open and locked, that what is on it is what was on the one
// that was released. Where nobody knew what that was, nothing can be proven.
func (c *Cleaner) proveContent(ctx context.Context, now Claimed) error {
	if now.Content == nil {
		return nil
	}
	if c.Prober == nil {
		return errors.New("nothing can tell what is on it")
	}
	found, err := c.Prober.Probe(ctx, now.Path)
	if err != nil {
		return maskNotFound(err)
	}
	if err := now.Content.Refute(ContentOf(found)); err != nil {
		return fmt.Errorf("%w; it is not touched: it may be another disk. If it is not, erase what is on it (wipefs --all, at the path that disk %s has by then)", err, now.Name)
	}
	return nil
}
