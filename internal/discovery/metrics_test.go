// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/berth-dev/berth/internal/metrics/metricstest"
)

// The disks are counted as they are, also by an agent that has started anew and had
// nothing to write.
func TestDisksAreCounted(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "ONE", 16, 1<<30)
	host.addDisk("vdc", "TWO", 32, 1<<30)
	client := newFakeClient(t)
	first := newTestInventory(t, host, client)
	first.start(t)
	first.hold(t, nameOf("TWO"))

	second := newTestInventory(t, host, client)
	registry := prometheus.NewPedanticRegistry()
	if _, err := newMetrics(registry, second.objects); err != nil {
		t.Fatal(err)
	}
	second.start(t)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP berth_block_devices BlockDevices of this node by state, claim state and the reason of their condition Usable.
# TYPE berth_block_devices gauge
berth_block_devices{claim_state="Claimed",reason="Claimed",state="Active"} 1
berth_block_devices{claim_state="Unclaimed",reason="Blank",state="Active"} 1
`), "berth_block_devices"); err != nil {
		t.Error(err)
	}
	metricstest.CheckSeries(t, registry, "berth_block_devices")
}
