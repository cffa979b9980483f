// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func TestTextOfADisk(t *testing.T) {
	t.Parallel()
	root, kept := tornDisk(t)
	m := DiskMetadata{Root: root}
	if text, err := m.Text("/dev/vdb", tornGroup, 66); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("half a text was read: %q, %v", text, err)
	}
	if _, err := m.RollBack("/dev/vdb", "berth-fast", kept); err != nil {
		t.Fatal(err)
	}
	text, err := m.Text("/dev/vdb", tornGroup, 65)
	if err != nil || !bytes.HasPrefix(text, []byte("berth-fast {\nid = \""+tornGroup+"\"\nseqno = 65\n")) {
		t.Fatalf("got %q, %v", text, err)
	}
	// What a file of vgcfgbackup begins with.
	for _, line := range []string{"\ncontents = \"Text Format Volume Group\"\nversion = 1\n", "\ncreation_time = "} {
		if !bytes.Contains(text, []byte(line)) {
			t.Errorf("%q is not in %q", line, text)
		}
	}
	if bytes.IndexByte(text, 0) >= 0 || !bytes.HasSuffix(text, []byte("\n")) {
		t.Errorf("it ends in %q", text[len(text)-10:])
	}
	for _, other := range []struct {
		uuid  string
		seqno uint64
	}{{tornGroup, 64}, {tornGroup, 66}, {"other", 65}} {
		if text, err := m.Text("/dev/vdb", other.uuid, other.seqno); !errors.Is(err, volume.ErrBusy) {
			t.Errorf("generation %d of %s: got %q, %v", other.seqno, other.uuid, text, err)
		}
	}
	if _, err := m.Text("/dev/vdz", tornGroup, 65); err == nil || errors.Is(err, volume.ErrBusy) {
		t.Errorf("a disk that is gone: %v", err)
	}
}
