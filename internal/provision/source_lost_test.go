// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// Nothing is restored from what holds nothing any more, and whoever asks is told why.
func TestOriginOfALostSnapshot(t *testing.T) {
	t.Parallel()
	for reason, says := range map[string]string{"": "", berth.ReasonHeld: "", berth.ReasonOverflowed: "has overflowed", berth.ReasonMissing: "is gone from the pool"} {
		s := &berth.LocalSnapshot{Status: berth.LocalSnapshotStatus{
			RestoreSize: resource.NewQuantity(1<<20, resource.BinarySI), Conditions: []metav1.Condition{{Type: berth.LocalSnapshotReady, Status: metav1.ConditionTrue}},
		}}
		if reason != "" {
			valid := metav1.Condition{Type: berth.LocalSnapshotValid, Status: metav1.ConditionFalse, Reason: reason}
			if says == "" {
				valid.Status = metav1.ConditionTrue
			}
			s.Status.Conditions = append(s.Status.Conditions, valid)
		}
		_, err := provision.OriginOfSnapshot(s, "VolumeSnapshot monday")
		switch {
		case says == "" && err != nil, says != "" && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), says)):
			t.Errorf("%q: %v", reason, err)
		}
		if provision.Lost(s) != (says != "") {
			t.Errorf("%q: lost is %v", reason, provision.Lost(s))
		}
	}
}
