// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestThinNumber(t *testing.T) {
	t.Parallel()
	if n, err := thinNumber([]dm.Target{{Type: "thin", Status: "253:4 17"}}); err != nil || n != 17 {
		t.Errorf("got %d, %v", n, err)
	}
	for name, table := range map[string][]dm.Target{
		"nothing": nil, "a linear device": {{Type: "linear", Status: "253:4 17"}}, "two targets": {{Type: "thin"}, {Type: "thin"}},
		"no number": {{Type: "thin", Status: "253:4"}}, "an external origin": {{Type: "thin", Status: "253:4 17 253:9"}}, "words": {{Type: "thin", Status: "253:4 x"}},
	} {
		if n, err := thinNumber(table); err == nil {
			t.Errorf("%s has number %d", name, n)
		}
	}
}

func FuzzThinNumber(f *testing.F) {
	f.Add("253:4 17")
	f.Fuzz(func(t *testing.T, status string) {
		n, err := thinNumber([]dm.Target{{Type: "thin", Status: status}})
		if err == nil && len(strings.Fields(status)) != 2 {
			t.Errorf("%q is %d", status, n)
		}
	})
}

// sysfs makes devices of device-mapper: name, UUID, whether it is suspended, and what it lies
// on.
func sysfs(t *testing.T, devices [][4]string) HostNodes {
	t.Helper()
	root := t.TempDir()
	for _, d := range devices {
		dir := filepath.Join(root, "sys/block", d[0])
		for _, sub := range []string{"dm", "slaves"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range map[string]string{"uuid": d[1], "suspended": d[2]} {
			if err := os.WriteFile(filepath.Join(dir, "dm", name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for lower := range strings.FieldsSeq(d[3]) {
			if err := os.Mkdir(filepath.Join(dir, "slaves", lower), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "sys/block/vdb"), 0o700); err != nil {
		t.Fatal(err)
	}
	return HostNodes{Root: root}
}

// aStack is a thin volume with an encrypted one on it, and another group.
func aStack(t *testing.T) HostNodes {
	t.Helper()
	return sysfs(t, [][4]string{
		{"dm-5", "CRYPT-LUKS2-x", "1", "dm-3"},
		{"dm-6", "mpath-x", "0", "dm-5"},
		{"dm-3", "LVM-groupvolume", "1", "dm-2"},
		{"dm-2", "LVM-grouppool-tpool", "1", "dm-0 dm-1"},
		{"dm-0", "LVM-grouppool_tdata", "1", "vdb"},
		{"dm-1", "LVM-grouppool_tmeta", "0", "vdb"},
		{"dm-7", "LVM-othervolume", "1", "vdc"},
		{"dm-8", "CRYPT-LUKS2-y", "1", "dm-7"},
	})
}

// What lies on a volume stands still before it, for the filesystem is there.
func TestWithHolders(t *testing.T) {
	t.Parallel()
	got, err := aStack(t).withHolders("LVM-groupvolume")
	if want := []string{"mpath-x", "CRYPT-LUKS2-x", "LVM-groupvolume"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := aStack(t).withHolders("LVM-nothing"); err != nil || len(got) > 0 {
		t.Errorf("of nothing: %q, %v", got, err)
	}
}

// What is suspended goes on from below, and nothing of another group.
func TestStuck(t *testing.T) {
	t.Parallel()
	got, err := aStack(t).stuck("group", nil)
	if want := []string{"LVM-grouppool_tdata", "LVM-grouppool-tpool", "LVM-groupvolume", "CRYPT-LUKS2-x"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if n, err := aStack(t).ResumeAll(t.Context(), "vg", "absent", nil); n != 0 || err != nil {
		t.Errorf("ResumeAll where nothing is suspended = %d, %v", n, err)
	}
	if _, err := (HostNodes{Root: t.TempDir()}).stuck("group", nil); err == nil {
		t.Error("without sysfs nothing is known")
	}
}

// The numbers of a pool hold for one generation of the metadata, on all devices.
func TestInstantIsCurrent(t *testing.T) {
	t.Parallel()
	i := Instant{GroupName: "vg", GroupUUID: "u", Seqno: 7, Devices: []string{"a", "b"}}
	type copyOf struct {
		uuid  string
		seqno uint64
		ok    bool
		err   error
	}
	current := copyOf{"u", 7, true, nil}
	for name, tc := range map[string]struct {
		a, b copyOf
		want error
	}{
		"on both":                 {current, current, nil},
		"one has no metadata":     {current, copyOf{}, nil},
		"none has":                {copyOf{}, copyOf{}, volume.ErrPoolUnavailable},
		"somebody has changed it": {current, copyOf{"u", 8, true, nil}, volume.ErrBusy},
		"another group":           {current, copyOf{"v", 7, true, nil}, volume.ErrBusy},
		"one cannot be read":      {current, copyOf{err: os.ErrPermission}, os.ErrPermission},
	} {
		err := i.isCurrent(func(path string) (string, uint64, bool, error) {
			c := map[string]copyOf{"a": tc.a, "b": tc.b}[path]
			return c.uuid, c.seqno, c.ok, c.err
		})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

// Who has been told to end begins nothing.
func TestInstantIsNotBegun(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run/lock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (HostInstants{Root: root}).Take(ctx, Instant{GroupName: "vg"}); !errors.Is(err, dm.ErrInstantOver) {
		t.Errorf("Take = %v", err)
	}
}
