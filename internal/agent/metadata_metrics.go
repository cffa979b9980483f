// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import "github.com/prometheus/client_golang/prometheus"

// What the label copy of berth_pool_metadata_kept says: the text of the volume group and the
// dump of the thin pool on the node, and both in the API.
const (
	keptGroupText  = "group"
	keptThinDump   = "thin"
	keptInAPI      = "api"
	keptCopiesHelp = "1 if the last copy of a pool's metadata was made, 0 if it could not be, by copy: group and thin on the node, api in the ConfigMap."
)

var metadataKeptDesc = prometheus.NewDesc("berth_pool_metadata_kept", keptCopiesHelp, []string{"pool", "copy"}, nil)

// Describe implements prometheus.Collector.
func (k *MetadataKeeper) Describe(ch chan<- *prometheus.Desc) { ch <- metadataKeptDesc }

// Collect implements prometheus.Collector: how the last copy of each kind went. One that was
// never tried is left out.
func (k *MetadataKeeper) Collect(ch chan<- prometheus.Metric) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for poolSet, w := range k.pools {
		w.mu.Lock()
		for kind, kept := range w.kept {
			value := 0.0
			if kept {
				value = 1
			}
			ch <- prometheus.MustNewConstMetric(metadataKeptDesc, prometheus.GaugeValue, value, poolSet, kind)
		}
		w.mu.Unlock()
	}
}

func (w *metadataWorker) isKept(kind string, kept bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept == nil {
		w.kept = map[string]bool{}
	}
	w.kept[kind] = kept
}
