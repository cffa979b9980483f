// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/berth-dev/berth/pkg/hostpath"
)

// trashMetrics are the metrics of one pool's trash at one time.
type trashMetrics struct {
	*trash
	now time.Time
}

func (m trashMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range trashDescs {
		ch <- desc
	}
}

func (m trashMetrics) Collect(ch chan<- prometheus.Metric) { m.collect(ch, "dirs", 500, m.now) }

func TestTrashMetrics(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := trashMetrics{&trash{}, now}
	changed := 0
	seen := rootObserver{m.trash, func() { changed++ }}
	want := func(when string, lines ...string) {
		t.Helper()
		var text strings.Builder
		for _, line := range lines {
			name, _, _ := strings.Cut(line, "{")
			i := slices.IndexFunc(trashDescs, func(d *prometheus.Desc) bool { return strings.Contains(d.String(), `"`+name+`"`) })
			help, _, _ := strings.Cut(strings.SplitN(trashDescs[i].String(), `help: "`, 2)[1], `"`)
			kind := "gauge"
			if strings.HasSuffix(name, "_total") {
				kind = "counter"
			}
			text.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n" + line + "\n")
		}
		if err := testutil.CollectAndCompare(m, strings.NewReader(text.String())); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	want("before it was looked at")

	seen.TrashWaiting("/srv", hostpath.TrashState{Volumes: 2, UsedBytes: 8192, Oldest: now.Add(-90 * time.Second)})
	seen.TrashRemoved("/srv", 7)
	seen.TrashRemoved("/srv", 1)
	seen.TrashFailed("/srv", errors.New("in the way"))
	want("in between",
		`berth_pool_trash_volumes{pool="dirs"} 2`, `berth_pool_trash_bytes{pool="dirs"} 8192`,
		`berth_pool_trash_oldest_seconds{pool="dirs"} 90`, `berth_pool_trash_rate_limit{pool="dirs"} 500`,
		`berth_pool_trash_removed_total{pool="dirs"} 8`, `berth_pool_trash_failures_total{pool="dirs"} 1`)

	// Nobody counts bytes, and the clock was set back.
	seen.TrashWaiting("/srv", hostpath.TrashState{Volumes: 1, UsedBytes: -1, Oldest: now.Add(time.Hour)})
	want("without quotas",
		`berth_pool_trash_volumes{pool="dirs"} 1`, `berth_pool_trash_oldest_seconds{pool="dirs"} 0`, `berth_pool_trash_rate_limit{pool="dirs"} 500`,
		`berth_pool_trash_removed_total{pool="dirs"} 8`, `berth_pool_trash_failures_total{pool="dirs"} 1`)

	m.forget()
	want("when the pool is gone")
	seen.TrashWaiting("/srv", hostpath.TrashState{})
	want("when it is back",
		`berth_pool_trash_volumes{pool="dirs"} 0`, `berth_pool_trash_bytes{pool="dirs"} 0`,
		`berth_pool_trash_oldest_seconds{pool="dirs"} 0`, `berth_pool_trash_rate_limit{pool="dirs"} 500`,
		`berth_pool_trash_removed_total{pool="dirs"} 8`, `berth_pool_trash_failures_total{pool="dirs"} 1`)

	seen.RetainedChanged("/srv")
	if changed != 1 {
		t.Errorf("whoever waits for room heard of it %d times", changed)
	}
}
