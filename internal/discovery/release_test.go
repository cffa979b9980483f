// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// TestReleaseRecordsTheContent: with the token of a wipe goes what the disk holds, by the node's
// records and by itself, and another disk that has come into its slot is not released.
func TestReleaseRecordsTheContent(t *testing.T) {
	t.Parallel()
	ext4 := block.Content{Found: true, Type: "ext4", UUID: "own"}
	own := device.Content{Type: "ext4", UUID: "own"}
	for name, tc := range map[string]struct {
		recorded *device.Content
		found    block.Content
		unread   error
		away     bool
		policy   volume.WipePolicy

		want    *device.Content
		refused bool
	}{
		"what is found":                     {found: ext4, want: &own},
		"nothing is found":                  {want: &device.Content{}},
		"what is recorded":                  {recorded: &own, found: ext4, want: &own},
		"what is recorded of an erased one": {recorded: &own, want: &own},
		"what is recorded of one away":      {recorded: &own, away: true, want: &own},
		"what is recorded of a dead one":    {recorded: &own, unread: errors.New("input/output error"), want: &own},
		"another filesystem":                {recorded: &own, found: block.Content{Found: true, Type: "ext4", UUID: "another"}, refused: true},
		"a partition table":                 {recorded: &own, found: block.Content{Found: true, PartitionTable: "gpt", PartitionTableUUID: "p"}, refused: true},
		"nothing is known of one away":      {away: true},
		"nothing is known of a dead one":    {unread: errors.New("input/output error")},
		"it is kept":                        {recorded: &own, found: block.Content{Found: true, Type: "xfs"}, policy: volume.WipeNone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			host.addDisk("vdb", "A", 16, 1<<30)
			inv := newTestInventory(t, host, newFakeClient(t))
			inv.examiner.probe = func(context.Context, *block.Device) (block.Content, error) { return tc.found, tc.unread }
			inv.opts.ContentOf = func(uid string) (device.Content, bool) {
				if tc.recorded == nil || uid != "u" {
					return device.Content{}, false
				}
				return *tc.recorded, true
			}
			inv.start(t)
			if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}); err != nil {
				t.Fatal(err)
			}
			if tc.away {
				host.removeDisk("vdb")
				inv.walk(t)
			}
			policy := volume.WipeZero
			if tc.policy != "" {
				policy = tc.policy
			}
			token, err := inv.Release(t.Context(), nameOf("A"), "u", policy)
			if tc.refused {
				if !errors.Is(err, volume.ErrIdentity) || !strings.Contains(err.Error(), "wipefs --all") {
					t.Errorf("Release = %v, want ErrIdentity with what to do", err)
				}
				if state := stateOf(inv.get(t, nameOf("A"))); state != device.StateClaimed {
					t.Errorf("it is %s", state)
				}
				return
			}
			if err != nil || (token == "") != (policy == volume.WipeNone) {
				t.Fatalf("Release = %q, %v", token, err)
			}
			var got *device.Content
			if c := inv.get(t, nameOf("A")).Status.Wipe.Content; c != nil {
				got = &device.Content{Type: c.Type, UUID: c.UUID}
			}
			if (got == nil) != (tc.want == nil) || got != nil && *got != *tc.want {
				t.Errorf("recorded is %v, want %v", got, tc.want)
			}
			if tc.away {
				host.addDisk("vdb", "A", 16, 1<<30)
				inv.walk(t)
			}
			now, err := inv.Resolve(t.Context(), nameOf("A"))
			if err != nil || (now.Content == nil) != (tc.want == nil) || now.Content != nil && *now.Content != *tc.want {
				t.Errorf("Resolve = %+v, %v, want content %v", now, err, tc.want)
			}
			// Repeated, it is not asked again: what is there may be wiped in part.
			inv.examiner.probe = func(context.Context, *block.Device) (block.Content, error) {
				return block.Content{Found: true, Type: "xfs", UUID: "x"}, nil
			}
			if again, err := inv.Release(t.Context(), nameOf("A"), "u", policy); err != nil || again != token {
				t.Errorf("Release again = %q, %v", again, err)
			}
		})
	}
}
