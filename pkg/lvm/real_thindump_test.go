// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// Dumps of a pool in which volumes come and go and are written to are whole, each of a
// state that lvm knows, and nothing stays held.
func TestKernelDumpThinPool(t *testing.T) {
	r := newRig(t)
	r.thin = true
	b := r.backend(t, 0)
	if _, err := b.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	make1 := func(n int) volume.Record {
		rec, err := b.Create(t.Context(), volume.Spec{ID: volumetest.ID(n), Name: "pvc", SizeBytes: 64 << 20, Access: volume.AccessBlock})
		if err != nil {
			t.Error(err)
		}
		return rec
	}
	rec := make1(1)
	loc, err := b.Locate(t.Context(), volumetest.ID(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loc.Device, bytes.Repeat([]byte("data"), 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range 6 {
			rec := make1(10 + n)
			if err := b.Delete(t.Context(), volumetest.ID(10+n), &rec, volume.WipeDiscard); err != nil {
				t.Error(err)
			}
		}
	})
	dir := t.TempDir()
	dumps := 0
	for tried := 0; dumps < 5 && tried < 200; tried++ {
		var out bytes.Buffer
		dump, err := b.DumpThinPool(t.Context(), goOn, &out)
		if err != nil {
			continue // lvm is at work; the next one is not refused for ever
		}
		dumps++
		if !strings.Contains(out.String(), fmt.Sprintf("transaction=\"%d\"", dump.TransactionID)) {
			t.Errorf("it is not of transaction %d: %.200s", dump.TransactionID, out.String())
		}
		xml, restored := filepath.Join(dir, "dump.xml"), filepath.Join(dir, "restored")
		if err := os.WriteFile(xml, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(restored, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]string{{"thin_restore", "-i", xml, "-o", restored}, {"thin_check", restored}} {
			if said, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", command[0], err, said)
			}
		}
	}
	wg.Wait()
	if dumps < 5 {
		t.Errorf("%d dumps", dumps)
	}
	state, err := b.Tend(t.Context())
	if err != nil || state.Usage.HeldRoot != 0 {
		t.Errorf("something is held: %+v, %v", state, err)
	}
	text, err := b.Text(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "lvm.vg")
	r.lvm(t, "pvck", "--dump", "metadata", "--file", file, r.disks[0])
	want, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(want)) != strings.TrimSpace(string(text.Text)) {
		t.Errorf("lvm reads %q, %v, and here is %q", want, err, text.Text)
	}
}
