// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package samples says of what the benchmarks have measured several times how it is spread.
package samples

import (
	"fmt"
	"slices"
)

// Of are measurements of one thing.
type Of []float64

// Quantile is the smallest sample that at least the share q of all do not exceed, 0 of none.
func (s Of) Quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	ordered := slices.Clone(s)
	slices.Sort(ordered)
	i := int(q*float64(len(ordered))+0.999999) - 1
	return ordered[min(max(i, 0), len(ordered)-1)]
}

// Median is the lower of the middle two where there are two.
func (s Of) Median() float64 { return s.Quantile(0.5) }

// Mean is 0 of none.
func (s Of) Mean() float64 {
	if len(s) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return sum / float64(len(s))
}

// Spread is the median, and between which values the others lie.
func (s Of) Spread(format string, unit float64) string {
	text := fmt.Sprintf(format, s.Median()/unit)
	least, most := fmt.Sprintf(format, s.Quantile(0)/unit), fmt.Sprintf(format, s.Quantile(1)/unit)
	if least == text && most == text {
		return text
	}
	return fmt.Sprintf("%s (%s to %s)", text, least, most)
}

// Average is the mean, and between which values the minutes lie: renewals come in some
// minutes and not in others.
func (s Of) Average(format string, unit float64) string {
	if len(s) == 1 {
		return fmt.Sprintf(format, s[0]/unit)
	}
	return fmt.Sprintf(format+" ("+format+" to "+format+")", s.Mean()/unit, s.Quantile(0)/unit, s.Quantile(1)/unit)
}
