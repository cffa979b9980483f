// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// What was confirmed is what was shown: a disk of the same serial number and size that has taken its
// slot is another one's, also when nothing that is known here is on it.
func TestPurgeOfADiskThatHoldsSomethingElse(t *testing.T) {
	t.Parallel()
	theirs := &mount.Superblock{FSType: "xfs", UUID: "theirs"}
	raw := func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" }
	for name, tc := range map[string]struct {
		known  bool
		change func(*ledger.Entry)
		then   *mount.Superblock
	}{
		"known, then LUKS or a volume group":     {known: true},
		"raw, then another filesystem":           {known: true, change: raw, then: theirs},
		"raw, then none":                         {known: true, change: raw},
		"not known, then another filesystem":     {then: theirs},
		"not known, then LUKS or a volume group": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.leave(tc.known, tc.change)
			req, was := h.request(), h.on
			confirmed := req
			confirmed.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			h.on = tc.then
			h.wantDisk(confirmed, v1alpha1.PurgeRefused, "something else than was shown")
			h.wantClaimed()
			h.wantDisk(confirmed, v1alpha1.PurgeQuarantined, "another quarantine")
			h.ask()

			// Between the look that finds the confirmation and the lock.
			h.on = was
			confirmed.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			lists := 0
			h.listing = func() {
				if lists++; lists > perLook {
					h.on = tc.then
				}
			}
			h.wantDisk(confirmed, v1alpha1.PurgeRefused, "something else than was shown")
			h.listing = nil
			h.wantClaimed()
			h.ask()

			h.on = was
			confirmed.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			h.begin(confirmed)
			h.on = tc.then
			h.wantDisk(confirmed, v1alpha1.PurgePurging, "something else than was shown")
			h.wantClaimed()
			h.on = was
			h.wantDisk(confirmed, v1alpha1.PurgePurged, "")
		})
	}
}

// perLook is how many kinds are listed at each look at a disk that is known by its serial number.
const perLook = 4

// A disk of somebody else's that has taken the slot of an encrypted one keeps what is on it, and its
// key slots.
func TestPurgeOfAnEncryptedDisk(t *testing.T) {
	t.Parallel()
	const own, foreign, none = "own", "foreign", "none"
	for name, tc := range map[string]struct {
		then string
		on   *mount.Superblock
		says string
	}{
		"another header": {then: foreign, says: "is the LUKS header"},
		"a filesystem":   {then: none, on: &mount.Superblock{FSType: "ext4", UUID: "theirs"}, says: "is encrypted"},
		"no header":      {then: none, says: "something else than was shown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.on = nil
			v := newVault(t, h.killer)
			put := func(what string) {
				clear(v.headers)
				switch what {
				case own:
					v.headers[v.store(h.pathOfDisk())] = &vaultHeader{uuid: volumetest.ID(1)}
				case foreign:
					v.headers[v.store(h.pathOfDisk())] = &vaultHeader{uuid: volumetest.ID(9)}
				}
			}
			h.vault = v
			h.start()
			h.leave(true, func(e *ledger.Entry) {
				e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, Seal: ledger.Sealed, UUID: e.UID, Cipher: "aes-xts-plain64", KeyGeneration: 1}
			})
			put(own)
			req := h.request()
			confirmed := req
			first := h.wantDisk(req, v1alpha1.PurgeQuarantined, "")
			if !strings.Contains(first.Holds, "encrypted") {
				t.Errorf("it holds %q", first.Holds)
			}
			confirmed.Confirm = first.Token
			put(tc.then)
			h.on = tc.on
			h.wantDisk(confirmed, v1alpha1.PurgeRefused, tc.says)
			h.wantClaimed()
			if tc.says != "something else than was shown" {
				h.wantDisk(req, v1alpha1.PurgeRefused, tc.says)
			}
			if len(v.ran) > 0 {
				t.Errorf("ran %v", v.ran)
			}
			h.ask()
			put(own)
			h.on = nil
			confirmed.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			h.wantDisk(confirmed, v1alpha1.PurgePurged, "")
			if h.released() == nil || !slices.Contains(v.ran, "destroy") {
				t.Errorf("ran %v", v.ran)
			}
		})
	}
}
