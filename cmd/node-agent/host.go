// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

var machineIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// readMachineID reads the identity of the host's installation (machine-id(5)).
func readMachineID(path string) (string, error) {
	data, err := os.ReadFile(path) //nolint:gosec // G703: the path is the operator's own option
	if err != nil {
		return "", fmt.Errorf("read the host's machine-id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if !machineIDPattern.MatchString(id) {
		return "", fmt.Errorf("%s holds %q, not a machine-id; run systemd-machine-id-setup on the host", path, id)
	}
	return id, nil
}
