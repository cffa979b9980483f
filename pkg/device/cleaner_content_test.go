// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// What a wipe that was cut off has left of the disk's own content is wiped, and so is a disk of
// which nobody knew what it held.
func TestCleanerWipesWhatWasReleased(t *testing.T) {
	t.Parallel()
	own := &device.Content{Type: "ext4", UUID: strings.ToUpper(foreignUUID)}
	for name, test := range map[string]struct {
		released *device.Content
		prober   device.Prober
	}{
		"its own":           {own, ext4()},
		"wiped in part":     {own, prober{}},
		"never known":       {nil, ext4()},
		"nothing as before": {&device.Content{}, prober{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := released(t, volume.WipeZero)
			now, err := n.registry.Resolve(t.Context(), "bd-disk-0")
			must(t, err)
			r := &skewed{Registry: n.registry, was: now, now: now}
			r.now.Content = test.released
			must(t, cleanWith(t, device.CleanerOptions{Registry: r, Disks: n.host.Opener(), Prober: test.prober}))
			if strings.Contains(content(t, n.host, "disk-0"), "secret") {
				t.Error("it was not wiped")
			}
		})
	}
}
