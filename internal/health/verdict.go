// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/smart"
	"github.com/berth-dev/berth/pkg/volume"
)

// errorBurst is how many commands may fail between two looks before a disk counts
// as failing. The kernel counts as failed also what asks a disk for something that
// it does not know, which programs that look at disks do a few times each.
const errorBurst = 20

// finding is what one look at a disk has brought.
type finding struct {
	report smart.Report
	err    error
	// since are the commands that failed since the last look.
	since block.Counters
}

// verdict sums a finding up. ok is false when it says nothing new: the disk sleeps.
func (f finding) verdict() (h discovery.Health, ok bool) {
	level, words := smart.Unknown, ""
	if f.err == nil {
		level, words = f.report.Judge()
	}
	switch {
	case level == smart.Failing:
		return discovery.Health{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSelfFailing, Message: words}, true
	case f.since.Timeouts > 0 || f.since.Errors >= errorBurst:
		return discovery.Health{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonIOErrors, Message: fmt.Sprintf(
			"since it was last looked at it has failed %d commands and not answered %d; the kernel's log tells which",
			f.since.Errors, f.since.Timeouts)}, true
	case errors.Is(f.err, smart.ErrAsleep):
		return discovery.Health{}, false
	case errors.Is(f.err, volume.ErrToolMissing):
		return unknown("smartctl is not installed on the node (package smartmontools)"), true
	case errors.Is(f.err, smart.ErrUnsupported):
		return unknown("it has no SMART"), true
	case f.err != nil:
		return unknown(f.err.Error()), true
	case level == smart.Worn:
		return discovery.Health{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonWorn, Message: words}, true
	case level == smart.Good:
		return discovery.Health{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonGood, Message: words}, true
	}
	return unknown(words), true
}

func unknown(message string) discovery.Health {
	return discovery.Health{Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonNotTold, Message: message}
}
