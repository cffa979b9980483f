// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestContentOf(t *testing.T) {
	t.Parallel()
	for want, found := range map[device.Content]block.Content{
		{}:                                   {},
		{Type: "ext4", UUID: "u"}:            {Found: true, Type: "ext4", Kind: "filesystem", UUID: "u", Label: "data"},
		{Type: "gpt", UUID: "p"}:             {Found: true, PartitionTable: "gpt", PartitionTableUUID: "p"},
		{Type: "LVM2_member", UUID: "v"}:     {Found: true, Type: "LVM2_member", UUID: "v", PartitionTable: "dos", PartitionTableUUID: "p"},
		{Type: device.Contradiction}:         {Found: true, Ambivalent: true, Type: "ext4", UUID: "u"},
		{Type: "swap"}:                       {Found: true, Type: "swap"},
		{Type: "crypto_LUKS", UUID: "l-u-k"}: {Found: true, Type: "crypto_LUKS", Kind: "crypto", UUID: "l-u-k"},
	} {
		if got := device.ContentOf(found); got != want {
			t.Errorf("ContentOf(%+v) = %+v, want %+v", found, got, want)
		}
	}
}

func TestRefute(t *testing.T) {
	t.Parallel()
	ext4, other, nothing := device.Content{Type: "ext4", UUID: "ab"}, device.Content{Type: "ext4", UUID: "cd"}, device.Content{}
	for _, tc := range []struct {
		held, seen device.Content
		refuted    bool
	}{
		{ext4, ext4, false},
		{ext4, device.Content{Type: "ext4", UUID: "AB"}, false},
		{ext4, nothing, false},
		{nothing, nothing, false},
		{ext4, other, true},
		{ext4, device.Content{Type: "xfs", UUID: "ab"}, true},
		{nothing, ext4, true},
		{nothing, device.Content{Type: device.Contradiction}, true},
		{ext4, device.Content{Type: device.Contradiction}, true},
	} {
		if err := tc.held.Refute(tc.seen); errors.Is(err, volume.ErrIdentity) != tc.refuted || (err != nil) != tc.refuted {
			t.Errorf("%s, seen as %s: %v, refuted is %v", tc.held, tc.seen, err, tc.refuted)
		}
	}
}
