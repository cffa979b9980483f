// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestCount(t *testing.T) {
	t.Parallel()
	var got counts
	var shown []string
	for _, line := range []string{
		"=== RUN   TestKernelFault",
		"    fault_test.go:7: --- PASS: of somebody else",
		"    --- PASS: TestKernelFault/create (1.00s)",
		"    --- FAIL: TestKernelFault/delete (1.00s)",
		"--- FAIL: TestKernelFault (2.00s)",
		"--- PASS: TestKernelKilled (2.00s)",
		"--- SKIP: TestKernelDataPath (0.00s)",
		"PASS",
	} {
		if got.count(line) {
			shown = append(shown, line)
		}
	}
	if want := (counts{passed: 2, failed: 2, skipped: 1}); got != want {
		t.Errorf("counted %v, want %v", got, want)
	}
	if len(shown) != 4 {
		t.Errorf("shown: %q", shown)
	}
	sum := counts{passed: 1}
	sum.add(got)
	if sum.String() != "3 passed, 2 failed, 1 skipped" {
		t.Errorf("the sum is %s", sum)
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		wanted []string
		power  bool
		count  int
	}{
		{nil, false, len(suites)}, {[]string{"lvm", "quota"}, false, 2}, {nil, true, 1}, {[]string{"quota"}, true, 0}, {[]string{"zfs"}, false, 0},
	} {
		chosen, err := choose(test.wanted, test.power)
		if (err == nil) != (test.count > 0) || len(chosen) != test.count {
			t.Errorf("%v, power %t: %d suites, %v", test.wanted, test.power, len(chosen), err)
		}
	}
}
