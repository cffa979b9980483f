// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// counts are how tests ended, those inside others too.
type counts struct{ passed, failed, skipped int }

// count takes a line of what go test -v prints. It tells whether a person wants to see it: how
// a test ended that is not inside another one, and what failed.
func (c *counts) count(line string) (show bool) {
	verdict := strings.TrimLeft(line, " ")
	inside := len(line) != len(verdict)
	switch {
	case strings.HasPrefix(verdict, "--- PASS: "):
		c.passed++
		return !inside
	case strings.HasPrefix(verdict, "--- SKIP: "):
		c.skipped++
		return !inside
	case strings.HasPrefix(verdict, "--- FAIL: "):
		c.failed++
		return true
	}
	return strings.HasPrefix(verdict, "panic: ")
}

func (c *counts) add(other counts) {
	c.passed += other.passed
	c.failed += other.failed
	c.skipped += other.skipped
}

// String says it as the other stages of the tests do.
func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}
