// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"
)

func TestMetadataFileNames(t *testing.T) {
	t.Parallel()
	f := metadataFile{kind: copyOfThin, at: time.Date(2026, 11, 27, 6, 30, 1, 0, time.UTC), generation: 12, transactionID: 7}
	f.name = f.fileName()
	if got, ok := parseMetadataFile(f.name); !ok || got != f || f.name != "thin-pool-20261127T063001Z-generation-12-transaction-7.xml.gz" {
		t.Errorf("%q is %+v, %v", f.name, got, ok)
	}
	for _, name := range []string{"", heldMarker, "thin-pool.part", "volume-group-20261127T063001Z-generation-12.xml.gz", "volume-group-20261399T063001Z-generation-12.vg.gz", "volume-group-20261127T063001Z-generation-012.vg.gz"} {
		if got, ok := parseMetadataFile(name); ok {
			t.Errorf("%q is %+v", name, got)
		}
	}
}
