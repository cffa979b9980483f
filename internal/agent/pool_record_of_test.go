// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestRecordedPools(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pools")
	pools := RecordedPools(dir)
	of := func(disk, want string) {
		t.Helper()
		if pool, err := pools.Of(disk); err != nil || pool != want {
			t.Errorf("disk %s is of pool %q (%v), want %q", disk, pool, err, want)
		}
	}
	of("bd-1", "")
	rec := &poolRecord{
		PoolSet: "fast", Kind: v1alpha1.PoolLVM, MachineID: "0123456789abcdef0123456789abcdef", PoolUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11",
		VGName: "berth-fast", VGUUID: "u", Disks: []string{"bd-1", "bd-2"},
	}
	save := func() {
		t.Helper()
		if err := newPoolRecords(dir).save(rec); err != nil {
			t.Fatal(err)
		}
	}
	save()
	of("bd-2", "fast")
	of("bd-3", "")
	rec.Disks = []string{"bd-1"}
	save()
	of("bd-2", "") // it has left
	rec.Removal = removalBegun
	save()
	of("bd-1", "")
	if err := os.WriteFile(filepath.Join(dir, "slow.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pool, err := pools.Of("bd-3"); err == nil {
		t.Errorf("a damaged record is of no pool: %q", pool)
	}
}
