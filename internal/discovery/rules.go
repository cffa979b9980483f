// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-dev/berth/pkg/block"
)

// orderedRule is an entry of the section rules. The first one that fits a disk decides.
type orderedRule struct {
	name string
	// keep is true for the action include.
	keep bool
	// nodes on which the rule counts; nil is all of them.
	nodes labels.Selector
	match match
}

// match is what a rule asks of a disk. Every field that is set must fit, a list by one
// of its entries.
type match struct {
	paths, vendors, models, serials, wwns, transports []string

	rotational, removable, readOnly *bool
	minSize, maxSize                *resource.Quantity
}

// forNode returns the filters as they count on a node with these labels.
func (f *Filters) forNode(node labels.Set) *Filters {
	here := *f
	here.ordered = slices.DeleteFunc(slices.Clone(f.ordered), func(r orderedRule) bool {
		return r.nodes != nil && !r.nodes.Matches(node)
	})
	return &here
}

// decideOrdered lets the first rule that fits decide; what none fits is kept, unless
// the configuration says otherwise: exclude.
func (f *Filters) decideOrdered(d *block.Device) Decision {
	for _, r := range f.ordered {
		why, fits := r.match.fits(d)
		switch {
		case !fits:
		case r.keep:
			return Decision{Named: true, Message: fmt.Sprintf("kept by rule %q: %s", r.name, why)}
		default:
			return Decision{Drop: true, Message: fmt.Sprintf("dropped by rule %q: %s", r.name, why)}
		}
	}
	if f.dropOthers {
		return Decision{Drop: true, Message: "dropped because no rule keeps it and berth-config says otherwise: exclude"}
	}
	return Decision{}
}

// fits reports whether a disk is what the rule asks for, and by what.
func (m *match) fits(d *block.Device) (why string, fits bool) {
	var reasons []string
	if len(m.paths) > 0 {
		reason, found := firstMatch(m.paths, append([]string{d.Path}, d.Links...))
		if !found {
			return "", false
		}
		reasons = append(reasons, reason)
	}
	for _, field := range []struct {
		name  string
		globs []string
		// values of which one must fit; those that are empty say nothing.
		values []string
	}{
		{"vendor", m.vendors, []string{d.Vendor}},
		{"model", m.models, []string{d.Model}},
		{"serial", m.serials, []string{d.Serial}},
		{"wwn", m.wwns, []string{d.WWN, d.NGUID, d.EUI64}},
		{"transport", m.transports, []string{d.Transport}},
	} {
		if len(field.globs) == 0 {
			continue
		}
		value, glob, found := firstGlob(field.globs, field.values)
		if !found {
			return "", false
		}
		reasons = append(reasons, describeGlob(field.name, value, glob))
	}
	for _, field := range []struct {
		name   string
		wanted *bool
		is     bool
	}{
		{"rotational", m.rotational, d.Rotational},
		{"removable", m.removable, d.Removable},
		{"readOnly", m.readOnly, d.ReadOnly},
	} {
		if field.wanted == nil {
			continue
		}
		if *field.wanted != field.is {
			return "", false
		}
		reasons = append(reasons, fmt.Sprintf("%s is %t", field.name, field.is))
	}
	if m.minSize != nil {
		if d.SizeBytes < m.minSize.Value() {
			return "", false
		}
		reasons = append(reasons, fmt.Sprintf("it has at least %s", m.minSize))
	}
	if m.maxSize != nil {
		if d.SizeBytes > m.maxSize.Value() {
			return "", false
		}
		reasons = append(reasons, fmt.Sprintf("it has at most %s", m.maxSize))
	}
	return strings.Join(reasons, ", "), true
}

// firstGlob finds the first value that a glob fits. Spaces around a value are padding
// of the disk's firmware.
func firstGlob(globs, values []string) (value, glob string, found bool) {
	for _, value := range values {
		value = strings.TrimSpace(value)
		if value == "" {
			continue
		}
		for _, glob := range globs {
			if fits(glob, value) {
				return value, glob, true
			}
		}
	}
	return "", "", false
}

// fits is path.Match in which a slash is a character as any other: names of models have
// them.
func fits(glob, value string) bool {
	const standIn = "\x00"
	ok, err := path.Match(strings.ReplaceAll(glob, "/", standIn), strings.ReplaceAll(value, "/", standIn))
	return err == nil && ok
}

func describeGlob(field, value, glob string) string {
	if value == glob {
		return fmt.Sprintf("%s is %q", field, value)
	}
	return fmt.Sprintf("%s %q matches %q", field, value, glob)
}
