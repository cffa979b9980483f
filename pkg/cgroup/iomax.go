// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Number is the number of a block device.
type Number struct{ Major, Minor uint32 }

// String is "major:minor", as the kernel writes it.
func (n Number) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

// unlimited is the kernel's word for no limit.
const unlimited = "max"

// formatLimits is the line of io.max that says exactly these limits. Each of the four is
// named, for the kernel keeps what a line leaves out.
func formatLimits(device Number, l volume.Limits) string {
	word := func(limit int64) string {
		if limit == 0 {
			return unlimited
		}
		return strconv.FormatInt(limit, 10)
	}
	return fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s", device,
		word(l.ReadBytesPerSecond), word(l.WriteBytesPerSecond), word(l.ReadIOPS), word(l.WriteIOPS))
}

// parseLimits reads what io.max says of a device. A device that has no line has no
// limits.
func parseLimits(content string, device Number) (volume.Limits, error) {
	var found volume.Limits
	for line := range strings.Lines(content) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != device.String() {
			continue
		}
		for _, word := range words[1:] {
			if err := parseLimit(&found, word); err != nil {
				return volume.Limits{}, fmt.Errorf("io.max says %q: %w", strings.TrimSpace(line), err)
			}
		}
		break
	}
	return found, nil
}

func parseLimit(l *volume.Limits, word string) error {
	key, value, _ := strings.Cut(word, "=")
	var limit *int64
	switch key {
	case "rbps":
		limit = &l.ReadBytesPerSecond
	case "wbps":
		limit = &l.WriteBytesPerSecond
	case "riops":
		limit = &l.ReadIOPS
	case "wiops":
		limit = &l.WriteIOPS
	default:
		return nil // of a newer kernel
	}
	if value == unlimited {
		*limit = 0
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	switch {
	case err != nil:
		return err
	case n <= 0:
		return fmt.Errorf("%s is no limit", word)
	}
	*limit = n
	return nil
}
