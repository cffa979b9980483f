// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	actionInclude = "include"
	actionExclude = "exclude"
)

var ruleFields = []string{"name", "action", "nodes", "match"}

var matchFields = []string{
	"paths", "vendors", "models", "serials", "wwns", "transports", "rotational", "removable", "readOnly", "minSize", "maxSize",
}

// rules reads the section rules.
func (p *parser) rules(n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		p.fail(n, "rules must be a list")
		return
	}
	names := map[string]bool{}
	for _, item := range n.Content {
		r := p.rule(item)
		if names[r.name] {
			p.fail(item, "rule %q stands twice: give each a name of its own, it is shown in REASON", r.name)
		}
		names[r.name] = true
		p.filters.ordered = append(p.filters.ordered, r)
	}
}

func (p *parser) rule(n *yaml.Node) orderedRule {
	var r orderedRule
	hasAction, hasMatch := false, false
	p.fields(n, "a rule", func(key string, keyNode, value *yaml.Node) {
		switch key {
		case "name":
			r.name = p.scalar(value, key)
		case "action":
			r.keep, hasAction = p.action(value, key), true
		case "nodes":
			r.nodes = p.selector(value)
		case "match":
			r.match, hasMatch = p.match(value), true
		default:
			p.fail(keyNode, "unknown field %q of a rule: allowed are %s", key, strings.Join(ruleFields, ", "))
		}
	})
	switch {
	case r.name == "":
		p.fail(n, "a rule without a name: it is shown in REASON")
	case !hasAction:
		p.fail(n, "rule %q has no action: write action: include or action: exclude", r.name)
	case !hasMatch:
		p.fail(n, "rule %q has no match: allowed in it are %s", r.name, strings.Join(matchFields, ", "))
	}
	return r
}

// action reports whether what is named is kept.
func (p *parser) action(n *yaml.Node, field string) bool {
	switch p.scalar(n, field) {
	case actionInclude:
		return true
	case actionExclude:
		return false
	}
	p.fail(n, "%s %q: allowed are include and exclude", field, n.Value)
	return false
}

func (p *parser) selector(n *yaml.Node) labels.Selector {
	selector, err := labels.Parse(p.scalar(n, "nodes"))
	if err != nil {
		p.fail(n, "nodes %q is not a label selector, as in kubectl get nodes --selector: %v", n.Value, err)
		return labels.Nothing()
	}
	if selector.Empty() {
		p.fail(n, "nodes is empty: leave it out for all nodes")
	}
	return selector
}

func (p *parser) match(n *yaml.Node) match {
	var m match
	lists := map[string]*[]string{
		"paths": &m.paths, "vendors": &m.vendors, "models": &m.models, "serials": &m.serials, "wwns": &m.wwns, "transports": &m.transports,
	}
	bools := map[string]**bool{"rotational": &m.rotational, "removable": &m.removable, "readOnly": &m.readOnly}
	sizes := map[string]**resource.Quantity{"minSize": &m.minSize, "maxSize": &m.maxSize}
	found := false
	p.fields(n, "match", func(key string, keyNode, value *yaml.Node) {
		found = true
		switch {
		case lists[key] != nil:
			*lists[key] = p.globs(value, key)
		case bools[key] != nil:
			is := p.truth(value, key)
			*bools[key] = &is
		case sizes[key] != nil:
			*sizes[key] = p.size(value, key)
		default:
			p.fail(keyNode, "unknown field %q of match: allowed are %s", key, strings.Join(matchFields, ", "))
		}
	})
	if !found {
		p.fail(n, "match is empty: for all other disks write otherwise: exclude beside rules")
	}
	if m.minSize != nil && m.maxSize != nil && m.minSize.Cmp(*m.maxSize) > 0 {
		p.fail(n, "minSize %s is larger than maxSize %s: no disk matches", m.minSize, m.maxSize)
	}
	return m
}

// globs takes a list of texts, or one.
func (p *parser) globs(n *yaml.Node, field string) []string {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	var globs []string
	for _, item := range items {
		glob := p.scalar(item, field)
		_, err := path.Match(glob, "")
		switch {
		case glob == "":
			p.fail(item, "%s: an empty entry matches nothing", field)
		case err != nil:
			p.fail(item, "%s: %q is not a valid glob: %v", field, glob, err)
		case field == "paths" && !strings.HasPrefix(glob, "/"):
			p.fail(item, "path %q must begin with /", glob)
		}
		globs = append(globs, glob)
	}
	if len(globs) == 0 {
		p.fail(n, "%s is empty: leave it out for any", field)
	}
	return globs
}

func (p *parser) size(n *yaml.Node, field string) *resource.Quantity {
	size, err := resource.ParseQuantity(p.scalar(n, field))
	if err != nil || size.Sign() <= 0 {
		p.fail(n, "%s %q is not a size: write it as in 100Gi or 2T", field, n.Value)
		size = resource.MustParse("1")
	}
	return &size
}
