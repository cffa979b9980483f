// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
)

func TestGenerations(t *testing.T) {
	t.Parallel()
	const group, other = "BdzGhu-j1r6-1Wmt-yAZB-ql0L-BljM-4Fz7B2", "AdzGhu-j1r6-1Wmt-yAZB-ql0L-BljM-4Fz7B2"
	dir := filepath.Join(t.TempDir(), "volume-groups")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	unfinished := filepath.Join(dir, ".durable-1")
	if err := os.WriteFile(unfinished, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenGenerations(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(unfinished); !os.IsNotExist(err) {
		t.Errorf("a write that never ended: %v", err)
	}
	if _, found, err := d.Kept(group); err != nil || found {
		t.Errorf("before anything was kept: %v, %v", found, err)
	}
	for seqno := range uint64(3) {
		want := lvm.Generation{
			GroupUUID: group, Seqno: seqno, Acting: seqno == 2,
			Headers: []lvm.AreaHeader{{PVUUID: "abc", OffsetBytes: 4096, Sector: []byte{0, 1, 255}}},
		}
		if err := d.Keep(want); err != nil {
			t.Fatal(err)
		}
		if got, found, err := d.Kept(group); err != nil || !found || !reflect.DeepEqual(got, want) {
			t.Errorf("kept %+v, %v, %v, want %+v", got, found, err, want)
		}
	}
	if _, found, err := d.Kept(other); err != nil || found {
		t.Errorf("another group: %v, %v", found, err)
	}
	for name, text := range map[string]string{
		"nothing":         "",
		"half":            `{"schemaVersion":1,"groupUUID":"` + group,
		"another version": `{"schemaVersion":2,"groupUUID":"` + group + `"}`,
		"another group":   `{"schemaVersion":1,"groupUUID":"` + other + `"}`,
		"another field":   `{"schemaVersion":1,"groupUUID":"` + group + `","acted":true}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, group+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := d.Kept(group); err == nil || found || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	for range 2 {
		if err := d.Forget(group); err != nil {
			t.Fatal(err)
		}
	}
	if _, found, err := d.Kept(group); err != nil || found {
		t.Errorf("after it was forgotten: %v, %v", found, err)
	}
	for _, name := range []string{"", "../x", "a/b", "."} {
		if err := d.Keep(lvm.Generation{GroupUUID: name}); err == nil {
			t.Errorf("%q was taken for a UUID", name)
		}
	}
}
