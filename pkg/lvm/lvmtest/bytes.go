// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A volume's bytes are in the files of its disks. While it is active they are in
// one file that stands for its device node, and go back when it is deactivated:
// so the next owner of an extent sees what the last one left there.

func (h *Host) activate(g *group, lv *logicalVolume) {
	if lv.thin != nil || lv.isThinPool() {
		h.activateThin(g, lv)
		return
	}
	if lv.node == "" && len(lv.legs) > 0 {
		h.activateRaid(g, lv)
		return
	}
	if lv.thickOf != nil {
		h.activate(g, lv.thickOf) // and with it all its snapshots
		return
	}
	for _, snapshot := range g.snapshotsOf(lv) {
		snapshot.node, snapshot.lags = h.shownFile(snapshot), false
	}
	lv.plugged = map[*disk]int{}
	for _, e := range lv.extents {
		lv.plugged[e.disk] = e.disk.plugs
	}
	if lv.node != "" {
		h.resizeNode(g, lv)
		return
	}
	lv.node = h.nodeFile(g, lv)
	out := h.create(lv.node)
	defer h.close(out)
	for i, e := range lv.extents {
		h.load(out, int64(i), g, e)
	}
	h.truncate(out, int64(len(lv.extents))*g.extent)
}

// nodeFile ends as device-mapper's names do.
func (h *Host) nodeFile(g *group, lv *logicalVolume) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return filepath.Join(h.dir, "node-"+lv.uuid+"-"+double(g.name)+"-"+double(lv.name))
}

// link makes a node of what has the bytes of a volume also while it is not active.
func (h *Host) link(file, node string) {
	if err := os.Remove(node); !errors.Is(err, fs.ErrNotExist) {
		h.must(err)
	}
	h.must(os.Link(file, node))
}

// resizeNode brings extents that the volume has got into its node.
func (h *Host) resizeNode(g *group, lv *logicalVolume) {
	if lv.thin != nil || lv.isThinPool() {
		h.activateThin(g, lv)
		return
	}
	out := h.open(lv.node)
	defer h.close(out)
	info, err := out.Stat()
	h.must(err)
	for i := info.Size() / g.extent; i < int64(len(lv.extents)); i++ {
		e := lv.extents[i]
		h.load(out, i, g, e)
	}
	h.truncate(out, int64(len(lv.extents))*g.extent)
}

func (h *Host) deactivate(lv *logicalVolume) {
	for _, g := range h.groups {
		for _, snapshot := range g.snapshotsOf(lv) {
			h.snapshotStatus(g, snapshot)
			snapshot.node = ""
		}
	}
	lv.stale = false
	if lv.thin != nil || lv.isThinPool() || len(lv.legs) > 0 || lv.thickOf != nil {
		lv.node = "" // its bytes stay where they are
		for _, part := range lv.parts {
			part.node = ""
		}
	}
	if lv.node == "" {
		return
	}
	in := h.open(lv.node)
	info, err := in.Stat()
	h.must(err)
	size := info.Size() / int64(len(lv.extents))
	for _, g := range h.groups {
		if g.volume(lv.name) == lv {
			size = g.extent
		}
	}
	for i, e := range lv.extents {
		if int64(i)*size >= info.Size() {
			break
		}
		out := h.open(e.disk.file)
		h.copyExtent(out, dataStart+e.index*size, in, int64(i)*size, size)
		h.close(out)
	}
	h.close(in)
	h.must(os.Remove(lv.node))
	lv.node = ""
}

// load copies one extent of a disk to a node.
func (h *Host) load(node *os.File, index int64, g *group, e extent) {
	in := h.open(e.disk.file)
	defer h.close(in)
	h.copyExtent(node, index*g.extent, in, dataStart+e.index*g.extent, g.extent)
}

// copyExtent copies what is not zero, so that the files stay sparse.
func (h *Host) copyExtent(out *os.File, outAt int64, in *os.File, inAt, length int64) {
	if !h.hasData(in, inAt, length) {
		if h.hasData(out, outAt, length) {
			_, err := out.WriteAt(make([]byte, length), outAt)
			h.must(err)
		}
		return
	}
	_, err := io.Copy(io.NewOffsetWriter(out, outAt), io.NewSectionReader(in, inAt, length))
	h.must(err)
}

// hasData reports whether a range of a file is anything but a hole.
func (h *Host) hasData(f *os.File, at, length int64) bool {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return false
	}
	h.must(err)
	return next < at+length
}

// nextData returns where the first data of any of the files are at or behind at, and
// end where none has any.
func (h *Host) nextData(end, at int64, files ...*os.File) int64 {
	first := end
	for _, f := range files {
		next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			continue
		}
		h.must(err)
		first = min(first, next)
	}
	return first
}

func (h *Host) create(path string) *os.File {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	h.must(err)
	return f
}

func (h *Host) open(path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	h.must(err)
	return f
}

func (h *Host) close(f *os.File) { h.must(f.Close()) }

func (h *Host) truncate(f *os.File, size int64) { h.must(f.Truncate(size)) }

// must ends the test when the fake itself does not work.
func (h *Host) must(err error) {
	if err != nil {
		panic("lvmtest: " + err.Error())
	}
}
