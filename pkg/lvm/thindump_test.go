// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

func goOn() error { return nil }

// isHeld reports whether a snapshot of the pool's metadata is held.
func isHeld(t *testing.T, b *lvm.Backend) bool {
	t.Helper()
	return tend(t, b).Usage.HeldRoot != 0
}

func TestTextOfAGroup(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	g, err := w.backend.Group(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	processes := w.VG.Processes()
	text, err := w.backend.Text(t.Context())
	if err != nil || text.Seqno != g.Seqno || text.GroupUUID != g.UUID || text.GroupName != g.Name || !bytes.Contains(text.Text, []byte(g.UUID)) {
		t.Errorf("got %+v, %v", text, err)
	}
	if n := w.VG.Processes() - processes; n > 0 {
		t.Errorf("it cost %d processes", n)
	}
	w.VG.SetBlind(true)
	if text, err := w.backend.Text(t.Context()); err == nil {
		t.Errorf("a group that cannot be seen has %+v", text)
	}
}

func TestDumpThinPool(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	var out bytes.Buffer
	held := 0
	dump, err := w.backend.DumpThinPool(t.Context(), func() error { held++; return nil }, &out)
	if err != nil {
		t.Fatal(err)
	}
	g, err := w.backend.Group(t.Context())
	if err != nil || dump.Seqno != g.Seqno || held != 1 {
		t.Errorf("it is of generation %d, now is %d, held %d times, %v", dump.Seqno, g.Seqno, held, err)
	}
	// The kernel leaves the size out, and thin_restore needs it.
	if strings.Contains(out.String(), `nr_data_blocks="0"`) || !strings.Contains(out.String(), "nr_data_blocks=\"") ||
		strings.Count(out.String(), "<device ") != 2 || !strings.HasSuffix(out.String(), "</superblock>\n\n") {
		t.Errorf("got %s", out.String())
	}
	if isHeld(t, w.backend) {
		t.Error("the snapshot of the metadata is still held")
	}
}

func TestDumpThinPoolFails(t *testing.T) {
	t.Parallel()
	errNo := errors.New("no")
	for name, tt := range map[string]struct {
		spoil   func(w *groupWorld)
		holding func() error
		want    error
		held    bool
	}{
		"no thin_dump":         {spoil: func(w *groupWorld) { w.VG.SetThinDump(false) }, want: volume.ErrToolMissing},
		"killed":               {spoil: func(w *groupWorld) { w.VG.Inject(lvmtest.Fault{Command: "thin_dump", Mode: lvmtest.DieBefore}) }},
		"killed in the middle": {spoil: func(w *groupWorld) { w.VG.Inject(lvmtest.Fault{Command: "thin_dump", Mode: lvmtest.DieWithin}) }},
		"hangs":                {spoil: func(w *groupWorld) { w.VG.Inject(lvmtest.Fault{Command: "thin_dump", Mode: lvmtest.HangBefore}) }},
		"refuses":              {spoil: func(w *groupWorld) { w.VG.Inject(lvmtest.Fault{Command: "thin_dump", Mode: lvmtest.Refuse}) }},
		"garbage":              {spoil: func(w *groupWorld) { w.VG.Inject(lvmtest.Fault{Command: "thin_dump", Mode: lvmtest.Garbage}) }},
		"held by somebody":     {spoil: func(w *groupWorld) { w.VG.HoldMetadata(true) }, want: volume.ErrBusy, held: true},
		"cannot be noted":      {holding: func() error { return errNo }, want: errNo},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newGroupWorld(t)
			if tt.spoil != nil {
				tt.spoil(w)
			}
			if tt.holding == nil {
				tt.holding = goOn
			}
			var out bytes.Buffer
			_, err := w.backend.DumpThinPool(t.Context(), tt.holding, &out)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, lvm.ErrStillHeld) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if held := isHeld(t, w.backend); held != tt.held {
				t.Errorf("a snapshot is held: %v", held)
			}
			w.create(t, 4) // nothing is in anybody's way
		})
	}
}

// The power fails at each step of a dump: what is held afterwards is given back, and a dump
// can be made.
func TestDumpThinPoolLosesPower(t *testing.T) {
	t.Parallel()
	wasHeld := false
	for n := 0; ; n++ {
		w := newGroupWorld(t)
		lost := w.VG.LosePower(n)
		_, err := w.backend.DumpThinPool(t.Context(), goOn, &bytes.Buffer{})
		if !lost() {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil {
			t.Fatalf("step %d: the power failed, and nobody noticed", n)
		}
		w.VG.Reboot()
		w.backend = w.VG.Backend()
		held := isHeld(t, w.backend)
		wasHeld = wasHeld || held
		if _, err := w.backend.DumpThinPool(t.Context(), goOn, &bytes.Buffer{}); held != errors.Is(err, volume.ErrBusy) {
			t.Errorf("step %d: held %v, and then %v", n, held, err)
		}
		for range 2 {
			if err := w.backend.ReleaseThinPool(t.Context()); err != nil {
				t.Errorf("step %d: %v", n, err)
			}
		}
		if isHeld(t, w.backend) {
			t.Errorf("step %d: it is still held", n)
		}
		if _, err := w.backend.DumpThinPool(t.Context(), goOn, &bytes.Buffer{}); err != nil {
			t.Errorf("step %d: %v", n, err)
		}
	}
	if !wasHeld {
		t.Error("no loss of power left a snapshot behind")
	}
}

func TestDumpOfThickVolumes(t *testing.T) {
	t.Parallel()
	b := lvmtest.NewVG(t, 32*extent).Backend()
	if _, err := b.DumpThinPool(t.Context(), goOn, &bytes.Buffer{}); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("got %v", err)
	}
	if err := b.ReleaseThinPool(t.Context()); err != nil {
		t.Error(err)
	}
}

// A dump holds a snapshot in the pool's own metadata: none is made of a pool of somebody else.
func TestNoDumpOfAdoptedThinPool(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	b := vg.Backend()
	held := false
	_, err := b.DumpThinPool(t.Context(), func() error { held = true; return nil }, io.Discard)
	if !errors.Is(err, volume.ErrInvalid) || held {
		t.Errorf("got %v, held %t", err, held)
	}
	if err := b.ReleaseThinPool(t.Context()); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("release: %v", err)
	}
}
