// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestPurgeRecordsThatAreDamaged(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	req := h.request(1)
	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
	path := filepath.Join(h.purgeDir, volumetest.ID(1)+".json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"cut":                strings.TrimSuffix(string(good), "}\n"),
		"of another":         strings.Replace(string(good), volumetest.ID(1), volumetest.ID(2), 1),
		"of a newer version": strings.Replace(string(good), `"schemaVersion": 1`, `"schemaVersion": 2`, 1),
		"without a token":    strings.Replace(string(good), req.Confirm, "", 1),
		"more than it was":   strings.Replace(string(good), `"Quarantined"`, `"Purging"`, 1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.want(req, v1alpha1.PurgeRefused, "damaged")
		if h.purger.Quarantined(volumetest.ID(1)) {
			t.Errorf("%s: it is a quarantine", name)
		}
	}
	// What was written on another machine orders nothing here.
	if err := os.WriteFile(path, []byte(strings.Replace(string(good), machine, "another-machine", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.want(req, v1alpha1.PurgeRefused, "another-machine")
	h.wantKept(1)
}

// A record that cannot be read says nothing: the quarantine that it may be is not ended, neither
// by what is asked for nor because nobody asks any more, and goes on by its own token when the
// record can be read again, as by a newer Berth.
func TestARecordThatCannotBeReadEndsNoQuarantine(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, path string, good []byte){
		"unreadable": func(t *testing.T, path string, _ []byte) { unreadable(t, path) },
		"truncated": func(t *testing.T, path string, good []byte) {
			if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"of a newer version": func(t *testing.T, path string, good []byte) {
			newer := strings.Replace(string(good), `"schemaVersion": 1,`, `"schemaVersion": 2, "more": true,`, 1)
			if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPurgeHost(t, volume.ModeLVM)
			h.leave(1, true)
			req := h.request(1)
			token := h.want(req, v1alpha1.PurgeQuarantined, "").Token
			path := filepath.Join(h.purgeDir, volumetest.ID(1)+".json")
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damage(t, path, good)
			before, beforeErr := os.ReadFile(path)
			h.start()
			for _, confirm := range []string{"", token, "another"} {
				req.Confirm = confirm
				if got := h.want(req, v1alpha1.PurgeRefused, path); got.Token != "" {
					t.Errorf("it shows a token: %+v", got)
				}
			}
			if got := h.tend(); len(got) > 0 {
				t.Errorf("nobody asks for it, and it is %+v", got)
			}
			if now, err := os.ReadFile(path); !bytes.Equal(now, before) || (err == nil) != (beforeErr == nil) {
				t.Errorf("the record was changed: %q, %v", now, err)
			}
			h.wantKept(1)

			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			h.start()
			req.Confirm = ""
			if got := h.want(req, v1alpha1.PurgeQuarantined, "confirmed by the token"); got.Token != token {
				t.Errorf("the quarantine has another token: %+v", got)
			}
			req.Confirm = token
			h.want(req, v1alpha1.PurgePurged, "")
		})
	}
}

// The same when the removal is about to begin: the answer is to wait, and not that the
// quarantine has ended, which would need another token.
func TestARecordThatCannotBeReadWhenTheRemovalBegins(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	req := h.request(1)
	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
	rec, err := h.purger.records.get(req.UID)
	if err != nil || rec == nil {
		t.Fatalf("the quarantine is %+v, %v", rec, err)
	}
	cause := errors.New("the disk does not answer")
	h.purger.records.damaged[req.UID] = cause
	place := PurgePlace{PoolSet: "fast", Mode: h.mode, Backend: h.memory, Again: func() {}}
	if got := h.purger.carryOut(t.Context(), place, req, rec); got.State != v1alpha1.PurgeWaiting || got.Token != req.Confirm || !strings.Contains(got.Message, cause.Error()) {
		t.Errorf("it is %+v", got)
	}
	if _, err := os.Stat(filepath.Join(h.purgeDir, req.UID+".json")); err != nil {
		t.Errorf("the record: %v", err)
	}
	h.wantKept(1)
	delete(h.purger.records.damaged, req.UID)
	h.want(req, v1alpha1.PurgePurged, "")
}

// What is read as an order to remove something is written again as the same.
func FuzzDecodePurgeRecord(f *testing.F) {
	const head = `{"schemaVersion":1,"uid":"00000000-0000-4000-8000-000000000001","kind":"Volume","identity":"vg/lv","poolSet":"fast","machineID":"m","names":["pvc-1"],"token":"t","since":"2026-01-01T00:00:00Z","holds":"",`
	f.Add([]byte(head + `"state":"Quarantined"}`))
	f.Add([]byte(head + `"state":"Purging","storage":{"mode":"lvm","sizeBytes":1,"lvm":{"vgName":"a","vgUUID":"b","lvName":"c","lvUUID":"d"}},"wipe":"zero"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord[purgeRecord](data)
		if err != nil {
			return
		}
		d, err := openPurgeRecords(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := d.put(nil, r); err != nil {
			t.Fatalf("accepted and not writable: %v", err)
		}
		again, err := openPurgeRecords(d.files.dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.get(r.UID)
		if err != nil || got == nil || got.State != r.State || got.Token != r.Token || got.Identity != r.Identity {
			t.Fatalf("read again as %+v, %v; it was %+v", got, err, r)
		}
	})
}
