// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package samples

import "testing"

func TestQuantile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		values Of
		q      float64
		want   float64
	}{
		{"nothing", nil, 0.5, 0},
		{"one", Of{3}, 0.95, 3},
		{"median of three", Of{9, 1, 5}, 0.5, 5},
		{"median of four is the lower of the middle two", Of{4, 1, 3, 2}, 0.5, 2},
		{"p95 of twenty", Of{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, 0.95, 19},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := test.values.Quantile(test.q); got != test.want {
				t.Errorf("quantile(%v) of %v = %v, want %v", test.q, test.values, got, test.want)
			}
		})
	}
}

func TestWhatIsSaidOfSamples(t *testing.T) {
	t.Parallel()
	s := Of{9, 1, 5}
	if s.Median() != 5 || s.Mean() != 5 || s.Quantile(0.95) != 9 || s.Quantile(0) != 1 || (Of{}).Median() != 0 || (Of{}).Mean() != 0 {
		t.Errorf("median %v, mean %v, p95 %v, least %v", s.Median(), s.Mean(), s.Quantile(0.95), s.Quantile(0))
	}
	if got, want := s.Spread("%.1f", 1), "5.0 (1.0 to 9.0)"; got != want {
		t.Errorf("spread %q, want %q", got, want)
	}
	if got, want := (Of{2, 2}).Spread("%.1f", 1), "2.0"; got != want {
		t.Errorf("spread %q, want %q", got, want)
	}
}
