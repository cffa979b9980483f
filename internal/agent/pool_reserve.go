// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/resource"
)

// reserve is how much of a pool is never handed out. It follows the PoolSet while the
// backend lives. The zero value reserves nothing.
type reserve struct {
	of atomic.Pointer[func(totalBytes int64) int64]
}

// bytes of a pool of totalBytes, never more than all of it.
func (r *reserve) bytes(totalBytes int64) int64 {
	f := r.of.Load()
	if f == nil {
		return 0
	}
	return min(max((*f)(totalBytes), 0), totalBytes)
}

// set reads spec.reserve: a percentage or a quantity, empty for nothing.
func (r *reserve) set(text string) error {
	f, err := parseReserve(text)
	if err != nil {
		return err
	}
	r.of.Store(&f)
	return nil
}

func parseReserve(text string) (func(totalBytes int64) int64, error) {
	if text == "" {
		return func(int64) int64 { return 0 }, nil
	}
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || p < 0 || p > 100 || math.IsNaN(p) {
			return nil, fmt.Errorf("spec.reserve %q is not a percentage from 0 to 100", text)
		}
		return func(totalBytes int64) int64 { return int64(math.Ceil(float64(totalBytes) / 100 * p)) }, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return nil, fmt.Errorf("spec.reserve %q is neither a percentage nor a quantity", text)
	}
	n := q.Value()
	return func(int64) int64 { return n }, nil
}
