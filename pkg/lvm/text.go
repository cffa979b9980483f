// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// GroupText is the metadata of a volume group as lvm writes them: what
// `vgcfgrestore --file` takes.
type GroupText struct {
	GroupName, GroupUUID string
	Seqno                uint64
	Text                 []byte
}

// Text returns the group's metadata, read from its devices below lvm and proven whole by
// their checksum. lvm ends the text on the disks by the same lines with which a file of
// vgcfgbackup begins (lib/format_text/export.c), so that one is as good as the other. It
// starts no process as long as nobody else changes the group, and is read also where
// devices are missing.
//
// volume.ErrBusy: it was changed meanwhile; call again. volume.ErrPoolUnavailable: the
// group cannot be seen, or none of its devices holds metadata.
func (b *Backend) Text(ctx context.Context) (GroupText, error) {
	g, err := b.Group(ctx)
	if err != nil {
		return GroupText{}, err
	}
	if state := g.State(); state != StateReady && state != StatePartial {
		return GroupText{}, fmt.Errorf("read the metadata of volume group %s: %w", g.Name, g.usable())
	}
	var errs []error
	for _, path := range g.Paths() {
		text, err := b.queue.metadata.Text(path, g.UUID, g.Seqno)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		if text != nil {
			return GroupText{GroupName: g.Name, GroupUUID: g.UUID, Seqno: g.Seqno, Text: text}, nil
		}
	}
	why := volume.ErrPoolUnavailable
	if slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, volume.ErrBusy) }) {
		why = volume.ErrBusy
	}
	return GroupText{}, fmt.Errorf("read the metadata of volume group %s: %w: generation %d is on none of its devices: %w",
		g.Name, why, g.Seqno, errors.Join(errs...))
}

// Text implements Metadata.
func (m DiskMetadata) Text(path, groupUUID string, seqno uint64) (text []byte, err error) {
	f, err := os.OpenFile(filepath.Join(m.Root, path), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return textOf(f, groupUUID, seqno)
}

func textOf(r io.ReaderAt, groupUUID string, seqno uint64) ([]byte, error) {
	offsets, err := metadataAreas(r)
	if err != nil {
		return nil, err
	}
	for _, offset := range offsets {
		a, err := readArea(r, offset)
		if err != nil {
			return nil, err
		}
		if !a.committed() {
			continue
		}
		text, whole, err := a.whole(r)
		if err != nil {
			return nil, err
		}
		if !whole {
			// lvm may have written between the reading of the header and that of the text.
			return nil, fmt.Errorf("%w: the metadata do not have their checksum", volume.ErrBusy)
		}
		uuid, found, err := generationOf(text)
		if err != nil {
			return nil, err
		}
		if uuid != groupUUID || found != seqno {
			return nil, fmt.Errorf("%w: it holds generation %d of volume group %s", volume.ErrBusy, found, uuid)
		}
		// The text ends with a zero byte.
		if n := len(text); n > 0 && text[n-1] == 0 {
			text = text[:n-1]
		}
		return text, nil
	}
	return nil, nil
}
