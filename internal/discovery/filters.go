// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	_ "embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/block"
)

// DefaultFilters is the configuration that deploy/ ships, the content of the key
// filters.yaml.
//
//go:embed default-filters.yaml
var DefaultFilters string

// The kinds of filter, as node-disk-manager names them.
const (
	keyOSDisk = "os-disk-exclude-filter"
	keyVendor = "vendor-filter"
	keyPath   = "path-filter"
)

var filterKeys = []string{keyOSDisk, keyVendor, keyPath}

// Filters is a valid filter configuration.
type Filters struct {
	// rules of node-disk-manager's kind, and Berth's own, which are asked after them.
	rules   []rule
	ordered []orderedRule
	// dropOthers drops what none of the ordered rules names.
	dropOthers bool
	// Notes are things that were accepted and have no effect.
	Notes []string
}

// rule is one filter that is switched on.
type rule struct {
	key, name        string
	include, exclude []string
}

// Decision is what the filters say of one device.
type Decision struct {
	// Drop is true when a filter drops the device. Message says which and why, or which
	// rule keeps it; empty when nothing named it.
	Drop    bool
	Message string
	// Named is true when an include names the device: then the operator has asked for
	// it, removable or not.
	Named bool
}

// SystemMountPoints are the mount points whose disks belong to the operating
// system; none when the filter is switched off.
func (f *Filters) SystemMountPoints() []string {
	var points []string
	for _, r := range f.rules {
		if r.key == keyOSDisk {
			points = append(points, r.exclude...)
		}
	}
	return points
}

// Decide applies the filters in the order they stand. system is why the device
// belongs to the operating system, nil if it does not.
func (f *Filters) Decide(d *block.Device, system *block.SystemUse) Decision {
	var decision Decision
	for _, r := range f.rules {
		var message string
		switch r.key {
		case keyOSDisk:
			if system != nil {
				return Decision{Drop: true, Message: fmt.Sprintf("holds the OS: %s is mounted from %s", system.MountPoint, system.Path)}
			}
		case keyVendor:
			message = r.decideVendor(d.Vendor)
		case keyPath:
			var named bool
			message, named = r.decidePath(d)
			decision.Named = decision.Named || named
		}
		if message != "" {
			return Decision{Drop: true, Message: fmt.Sprintf("dropped by filter %q: %s", r.name, message)}
		}
	}
	ordered := f.decideOrdered(d)
	ordered.Named = ordered.Named || decision.Named && !ordered.Drop
	return ordered
}

func (r *rule) decideVendor(vendor string) string {
	same := func(want string) bool { return strings.EqualFold(strings.TrimSpace(vendor), want) }
	if len(r.include) > 0 && !slices.ContainsFunc(r.include, same) {
		return fmt.Sprintf("vendor %q is not among those included", vendor)
	}
	if slices.ContainsFunc(r.exclude, same) {
		return fmt.Sprintf("vendor %q is excluded", vendor)
	}
	return ""
}

func (r *rule) decidePath(d *block.Device) (message string, named bool) {
	paths := append([]string{d.Path}, d.Links...)
	if len(r.include) > 0 {
		if _, named = firstMatch(r.include, paths); !named {
			return fmt.Sprintf("%s is not among the paths included", d.Path), false
		}
	}
	why, _ := firstMatch(r.exclude, paths)
	return why, named
}

// firstMatch finds the first path that one of the patterns matches and says how.
func firstMatch(patterns, paths []string) (why string, found bool) {
	for _, p := range paths {
		for _, pattern := range patterns {
			if isGlob(pattern) {
				if ok, _ := path.Match(pattern, p); ok {
					return fmt.Sprintf("%s matches %s", p, pattern), true
				}
			} else if strings.HasPrefix(p, pattern) {
				return fmt.Sprintf("%s starts with %s", p, pattern), true
			}
		}
	}
	return "", false
}

func isGlob(pattern string) bool { return strings.ContainsAny(pattern, "*?[") }
