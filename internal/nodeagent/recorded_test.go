// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"testing"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// A disk is whose the ledger says. While it is handed over, it is whose the object says of the two, until
// the ledger says that it has come to the new one.
func TestHolder(t *testing.T) {
	t.Parallel()
	const left, heir, third = "0b5f3c1e-0000-4000-8000-000000000001", "0b5f3c1e-0000-4000-8000-000000000002", "0b5f3c1e-0000-4000-8000-000000000003"
	entry := func(uid string, state ledger.State, of string) ledger.Entry {
		e := ledger.Entry{
			UID: uid, Name: "pvc-" + uid, MachineID: "machine-1", State: state, Mode: volume.ModeDevice, Wipe: volume.WipeZero, Access: volume.AccessBlock,
		}
		if of != "" {
			e.LeftOver = &ledger.LeftOver{UID: of, Identity: "x"}
		}
		if state != ledger.Carving {
			e.Record = &volume.Record{Mode: volume.ModeDevice, SizeBytes: 1 << 20, Device: &volume.DeviceRecord{
				Name: "bd-1", IdentityScheme: "serial", IdentityValue: "S1", SizeBytes: 1 << 20,
			}}
		}
		return e
	}
	foreign := entry(left, ledger.Ready, "")
	foreign.MachineID = "machine-2"
	for name, tc := range map[string]struct {
		entries []ledger.Entry
		// claimed is the UID that the object says, and want the one that is believed.
		claimed, want string
	}{
		"nobody":                            {},
		"a volume":                          {entries: []ledger.Entry{entry(left, ledger.Ready, "")}, want: left},
		"of another machine":                {entries: []ledger.Entry{foreign}, claimed: left},
		"one that is being made":            {entries: []ledger.Entry{entry(left, ledger.Carved, "")}, claimed: left},
		"two":                               {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(third, ledger.Ready, "")}, claimed: left},
		"before it is handed over":          {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carving, left)}, claimed: left, want: left},
		"after that":                        {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carving, left)}, claimed: heir, want: heir},
		"meanwhile, without the object":     {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carving, left)}, want: left},
		"meanwhile, by a third one":         {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carving, left)}, claimed: third, want: left},
		"one that takes another disk":       {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carving, third)}, claimed: heir, want: left},
		"one that the ledger does not know": {entries: []ledger.Entry{entry(heir, ledger.Carving, left)}, claimed: left},
		"when the ledger says so":           {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carved, left)}, claimed: left, want: heir},
		"the heir of another one":           {entries: []ledger.Entry{entry(left, ledger.Ready, ""), entry(heir, ledger.Carved, third)}, claimed: left},
		"when the left-over is forgotten":   {entries: []ledger.Entry{entry(heir, ledger.Carved, left)}, want: heir},
		"when it is done":                   {entries: []ledger.Entry{entry(heir, ledger.Ready, "")}, claimed: left, want: heir},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := ledger.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range tc.entries {
				if err := l.Put(e); err != nil {
					t.Fatal(err)
				}
			}
			n := &Agent{Options: Options{MachineID: "machine-1", Ledger: l}}
			if got, held := n.holder("bd-1", tc.claimed); got.UID != tc.want || held != (tc.want != "") {
				t.Errorf("it is held by %+v, %v, want %q", got, held, tc.want)
			}
			if got, held := n.holder("bd-2", tc.claimed); held {
				t.Errorf("another disk is held by %+v", got)
			}
		})
	}
}

// What a volume has on its disk is known of a filesystem and of a LUKS header that were made on
// this machine, and of nothing else.
func TestContentOf(t *testing.T) {
	t.Parallel()
	const uid = "0b5f3c1e-0000-4000-8000-000000000001"
	whole := &volume.Record{Mode: volume.ModeDevice, SizeBytes: 1 << 20, Device: &volume.DeviceRecord{
		Name: "bd-1", IdentityScheme: "serial", IdentityValue: "S1", SizeBytes: 1 << 20,
	}}
	entry := func(change func(*ledger.Entry)) ledger.Entry {
		e := ledger.Entry{
			UID: uid, Name: "pvc-1", MachineID: "machine-1", State: ledger.Deleting, Mode: volume.ModeDevice, Wipe: volume.WipeZero,
			Access: volume.AccessFilesystem, FSType: "ext4", FSUUID: "5d6c2a51-0000-4000-8000-000000000001", Record: whole,
		}
		change(&e)
		return e
	}
	for name, tc := range map[string]struct {
		change func(*ledger.Entry)
		want   device.Content
		known  bool
	}{
		"a filesystem": {func(*ledger.Entry) {}, device.Content{Type: "ext4", UUID: "5d6c2a51-0000-4000-8000-000000000001"}, true},
		"another machine's": {
			func(e *ledger.Entry) { e.MachineID = "machine-2" }, device.Content{}, false,
		},
		"a raw block volume": {
			func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" }, device.Content{}, false,
		},
		"an encrypted one": {
			func(e *ledger.Entry) {
				e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, Seal: ledger.Sealed, UUID: uid, Cipher: "aes-xts-plain64", KeyGeneration: 1}
			},
			device.Content{Type: "crypto_LUKS", UUID: uid},
			true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := ledger.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Put(entry(tc.change)); err != nil {
				t.Fatal(err)
			}
			n := &Agent{}
			n.Ledger, n.MachineID = l, "machine-1"
			if got, known := n.contentOf(uid); got != tc.want || known != tc.known {
				t.Errorf("contentOf = %v, %v, want %v, %v", got, known, tc.want, tc.known)
			}
			if _, known := n.contentOf("0b5f3c1e-0000-4000-8000-000000000002"); known {
				t.Error("a volume without an entry is known")
			}
		})
	}
}
