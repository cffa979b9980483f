// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// VolumeCollector tells of the volumes of the node that somebody must look at, as their
// objects say it: there is no series of a volume that is well. It implements
// prometheus.Collector.
type VolumeCollector struct {
	// Cache has the LocalVolumes of the node.
	Cache       client.Reader
	CacheSynced func() bool
	// Ledger of the node; nil tells nothing of what it alone knows.
	Ledger *ledger.Ledger
}

var (
	volumesDesc         = prometheus.NewDesc("berth_volumes", "LocalVolumes of this node.", nil, nil)
	volumeUnhealthyDesc = prometheus.NewDesc("berth_volume_unhealthy", "1 for each LocalVolume of this node that is not ready, or not healthy, by the condition that says so and its reason.",
		[]string{"localvolume", "claim_namespace", "claim", "condition", "reason"}, nil)
	volumeDeletionDesc = prometheus.NewDesc("berth_volume_deletion_timestamp_seconds", "When the deletion of a LocalVolume that is still there was asked for, in seconds since 1970.",
		[]string{"localvolume", "claim_namespace", "claim"}, nil)
	leftOverDisksDesc = prometheus.NewDesc("berth_left_over_disks", "Whole disks of this node that are a volume by its ledger, of which the LocalVolume is gone.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *VolumeCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- volumesDesc
	ch <- volumeUnhealthyDesc
	ch <- volumeDeletionDesc
	ch <- leftOverDisksDesc
}

// Collect implements prometheus.Collector. While the volumes are not known it tells nothing.
func (c *VolumeCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.CacheSynced() {
		return // a read would wait for the API server
	}
	volumes := &v1alpha1.LocalVolumeList{}
	if err := c.Cache.List(context.Background(), volumes, client.UnsafeDisableDeepCopy); err != nil {
		return // an error here would hide every other metric of the agent
	}
	ch <- prometheus.MustNewConstMetric(volumesDesc, prometheus.GaugeValue, float64(len(volumes.Items)))
	if c.Ledger != nil {
		ch <- prometheus.MustNewConstMetric(leftOverDisksDesc, prometheus.GaugeValue, float64(c.leftOverDisks(volumes)))
	}
	for i := range volumes.Items {
		v := &volumes.Items[i]
		var namespace, claim string
		if ref := v.Spec.ClaimRef; ref != nil {
			namespace, claim = ref.Namespace, ref.Name
		}
		if at := v.DeletionTimestamp; at != nil {
			ch <- prometheus.MustNewConstMetric(volumeDeletionDesc, prometheus.GaugeValue, float64(at.Unix()), v.Name, namespace, claim)
		}
		for _, name := range []string{v1alpha1.LocalVolumeReady, v1alpha1.LocalVolumeHealthy} {
			if condition := meta.FindStatusCondition(v.Status.Conditions, name); condition != nil && condition.Status == metav1.ConditionFalse {
				ch <- prometheus.MustNewConstMetric(volumeUnhealthyDesc, prometheus.GaugeValue, 1, v.Name, namespace, claim, name, condition.Reason)
			}
		}
	}
}

// leftOverDisks counts the disks whose volume has no object. Pools tell of their own.
func (c *VolumeCollector) leftOverDisks(volumes *v1alpha1.LocalVolumeList) (count int) {
	wanted := map[string]bool{}
	for i := range volumes.Items {
		wanted[string(volumes.Items[i].UID)] = true
	}
	for _, e := range c.Ledger.All() {
		if e.Mode == volume.ModeDevice && e.State != ledger.Deleting && !wanted[e.UID] {
			count++
		}
	}
	return count
}
