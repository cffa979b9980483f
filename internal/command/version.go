// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"
	"runtime/debug"
)

// buildVersion is set by the linker (-X) where the image is built.
var buildVersion string

// Version is what the build was told, or what the Go toolchain recorded of it.
func Version() string {
	if buildVersion != "" {
		return buildVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, modified string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			revision = setting.Value
		case "vcs.modified":
			if setting.Value == "true" {
				modified = "-dirty"
			}
		}
	}
	if revision == "" {
		return "devel"
	}
	return fmt.Sprintf("devel-%.12s%s", revision, modified)
}
