// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// complaint is what is told of a line of a log: what failed, not of which node.
var complaint = regexp.MustCompile(`level=(?:WARN|ERROR) msg=("[^"]*"|\S+)`)

// complaints shows what the agents and the provisioner have logged since it was called last.
func (r *run) complaints() error {
	for _, log := range []string{"hollow.log", "agent/log", "provisioner/log"} {
		content, err := os.ReadFile(filepath.Join(r.dir, log))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		counts, examples := map[string]int{}, map[string]string{}
		for line := range strings.Lines(string(content[r.heard[log]:])) {
			if match := complaint.FindStringSubmatch(line); match != nil {
				counts[match[1]]++
				examples[match[1]] = line[:min(len(line), 300)]
			}
		}
		r.heard[log] = len(content)
		for what, n := range counts {
			r.say("  %s: %d times %s: %s", log, n, what, strings.TrimSpace(examples[what]))
		}
	}
	return nil
}
