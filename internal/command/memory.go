// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package command

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// collectedPercent of what the container may have is where the garbage collector begins to work
// harder. The rest is for what is not its own.
const collectedPercent = 85

// RespectMemoryLimit has garbage collected before the container's limit of memory is reached, by
// which the kernel would kill the process: after the API server's restart everything is read
// anew, and old and new are there at once. cgroup is the container's own directory of cgroup v2. It
// returns the limit that holds now, 0 where the container has none or it is not known. The
// variable GOMEMLIMIT goes before it.
func RespectMemoryLimit(cgroup string) (limitBytes int64) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0
	}
	text, err := os.ReadFile(filepath.Join(cgroup, "memory.max"))
	if err != nil {
		return 0 // as with cgroup v1
	}
	most, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || most <= 0 {
		return 0 // "max"
	}
	limitBytes = most / 100 * collectedPercent
	debug.SetMemoryLimit(limitBytes)
	return limitBytes
}
