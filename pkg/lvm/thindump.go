// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// ThinDump says of what state of a thin pool a dump is.
type ThinDump struct {
	// Seqno is the generation of the volume group's metadata, TransactionID that of the
	// pool's own.
	Seqno, TransactionID uint64
	// Usage of the pool at that moment.
	Usage dm.ThinPool
}

// ErrStillHeld: a snapshot of the pool's metadata could not be given back. The pool works
// on, and each block of its metadata that changes is kept in both versions meanwhile.
var ErrStillHeld = errors.New("the snapshot of the thin pool's metadata is still held")

const (
	// dumpTimeout bounds one thin_dump: about a hundred million mappings.
	dumpTimeout = 10 * time.Minute
	// releaseTimeout bounds the giving back, which waits for nothing but one commit.
	releaseTimeout = 30 * time.Second
)

// DumpThinPool writes the mappings of the group's thin pool to out, as the XML that
// thin_restore takes, while the pool is in use. The kernel holds a snapshot of the pool's
// metadata for it (reserve_metadata_snap), which is taken under lvm's own lock, so that it
// is of the generation that is returned, and is given back in whatever way the call ends;
// holding is called right before, and nothing is done when it returns an error. thin_dump
// itself runs beside lvm and holds up nobody; no lvm process is started.
//
// volume.ErrBusy: the group is being changed, or somebody else holds such a snapshot, of
// which a pool has only one; nothing was done. volume.ErrToolMissing: the host has no
// thin_dump. volume.ErrPoolUnavailable: the pool is not there, not active, or its metadata
// cannot be changed. volume.ErrInvalid: the pool is somebody else's, and is not touched.
// ErrStillHeld: call ReleaseThinPool.
func (b *Backend) DumpThinPool(ctx context.Context, holding func() error, out io.Writer) (ThinDump, error) {
	dump, pool, err := b.holdThinPool(ctx, holding)
	if err != nil {
		return ThinDump{}, err
	}
	err = b.dump(ctx, pool, dump.Usage, out)
	// Also when the agent is told to end.
	release, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if e := b.nodes.ReleaseThinMetadata(release, pool); e != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", ErrStillHeld, e))
	}
	if err != nil {
		return ThinDump{}, fmt.Errorf("dump the metadata of thin pool %s: %w", pool, err)
	}
	return dump, nil
}

// holdThinPool lets the kernel hold a snapshot of the pool's metadata.
func (b *Backend) holdThinPool(ctx context.Context, holding func() error) (dump ThinDump, pool NodeID, err error) {
	g, err := b.ready(ctx)
	if err != nil {
		return ThinDump{}, NodeID{}, err
	}
	pool, err = b.thinPoolOf(g)
	if err != nil {
		return ThinDump{}, NodeID{}, err
	}
	held := false
	err = b.nodes.WhileStill(ctx, g.Name, func() error {
		if !unchanged(g, b.queue.seqno) {
			return fmt.Errorf("%w: volume group %s is being changed", volume.ErrBusy, g.Name)
		}
		usage, active, err := b.nodes.ThinPool(ctx, pool)
		switch {
		case err != nil:
			return err
		case !active || usage.NeedsCheck || usage.Mode != dm.ThinPoolWritable && usage.Mode != dm.ThinPoolOutOfData:
			return fmt.Errorf("%w: the pool is not active, or its metadata cannot be changed", volume.ErrPoolUnavailable)
		case usage.HeldRoot != 0:
			return fmt.Errorf("%w: somebody else holds a snapshot of its metadata", volume.ErrBusy)
		}
		if err := holding(); err != nil {
			return err
		}
		held = true
		if err := b.nodes.HoldThinMetadata(ctx, pool); err != nil {
			return err
		}
		dump = ThinDump{Seqno: g.Seqno, TransactionID: usage.TransactionID, Usage: usage}
		return nil
	})
	if err != nil && held {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		if e := b.nodes.ReleaseThinMetadata(release, pool); e != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrStillHeld, e))
		}
	}
	if err != nil {
		return ThinDump{}, NodeID{}, fmt.Errorf("dump the metadata of thin pool %s: %w", pool, err)
	}
	return dump, pool, nil
}

// thinPoolOf returns our thin pool. One of somebody else is only used: what the kernel holds of
// it is written into its metadata.
func (b *Backend) thinPoolOf(g *Group) (NodeID, error) {
	if b.queue.pool != nil {
		return NodeID{}, fmt.Errorf("volume group %s: %w: the thin pool %s is not Berth's", g.Name, volume.ErrInvalid, b.queue.pool.Name)
	}
	pool, err := g.thinPool()
	if err != nil {
		return NodeID{}, err
	}
	if pool == nil {
		return NodeID{}, fmt.Errorf("volume group %s: %w: it has no thin pool", g.Name, volume.ErrPoolUnavailable)
	}
	return NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: pool.Name, UUID: pool.UUID}, nil
}

func (b *Backend) dump(ctx context.Context, pool NodeID, usage dm.ThinPool, out io.Writer) error {
	path, err := b.nodes.ThinMetadataPath(ctx, pool)
	if err != nil {
		return err
	}
	xml := &sizedXML{to: out, dataBlocks: usage.DataBlocks}
	_, err = b.queue.client.runner.Run(ctx, hostexec.Command{
		Name: "thin_dump", Args: []string{"--metadata-snap", path}, Stdout: xml, Timeout: dumpTimeout,
	})
	if err != nil {
		return err
	}
	if !xml.ended() {
		return errors.New("thin_dump wrote no whole dump")
	}
	return nil
}

// ReleaseThinPool gives back the snapshot of the pool's metadata that the kernel holds, of
// whomever: it is for one that a killed agent has left. It returns nil when none is held,
// and when the group has no thin pool. ErrStillHeld: that is not known, for one because the
// pool is not active; call again.
func (b *Backend) ReleaseThinPool(ctx context.Context) error {
	g, err := b.ready(ctx)
	if err != nil {
		return err
	}
	pool, err := b.thinPoolOf(g)
	if errors.Is(err, volume.ErrPoolUnavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := b.nodes.ReleaseThinMetadata(ctx, pool); err != nil {
		return fmt.Errorf("thin pool %s: %w: %w", pool, ErrStillHeld, err)
	}
	return nil
}

// sizedXML puts the size of the pool into the first line of a dump. The kernel leaves it
// out of the snapshots of metadata that it holds (__reserve_metadata_snap in
// drivers/md/dm-thin-metadata.c wipes the space map that has it), thin_dump then writes 0,
// and thin_restore does not take the mappings: they are beyond the end of the pool.
type sizedXML struct {
	to         io.Writer
	dataBlocks uint64

	begun bool
	first []byte
	last  []byte
}

const (
	// firstLineBytes bounds what is kept of a dump until its first line is whole.
	firstLineBytes = 4 << 10
	// lastBytes of a dump are kept: its last tag, and what is behind it.
	lastBytes    = 32
	noDataBlocks = `nr_data_blocks="0"`
	lastTag      = "</superblock>"
)

// Write implements io.Writer.
func (x *sizedXML) Write(p []byte) (int, error) {
	n := len(p)
	x.last = append(x.last, p[max(0, n-lastBytes):]...)
	x.last = x.last[max(0, len(x.last)-lastBytes):]
	if !x.begun {
		x.first = append(x.first, p...)
		end := bytes.IndexByte(x.first, '\n')
		if end < 0 && len(x.first) < firstLineBytes {
			return n, nil
		}
		if end < 0 {
			return 0, errors.New("what thin_dump writes does not begin as expected")
		}
		sized := `nr_data_blocks="` + strconv.FormatUint(x.dataBlocks, 10) + `"`
		p = append(bytes.Replace(x.first[:end], []byte(noDataBlocks), []byte(sized), 1), x.first[end:]...)
		x.begun, x.first = true, nil
	}
	if _, err := x.to.Write(p); err != nil {
		return 0, err
	}
	return n, nil
}

// ended reports whether the dump came to its end.
func (x *sizedXML) ended() bool {
	return x.begun && bytes.HasSuffix(bytes.TrimSpace(x.last), []byte(lastTag))
}
