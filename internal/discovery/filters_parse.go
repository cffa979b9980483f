// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The keys of the ConfigMap. The second is what node-disk-manager calls it.
const (
	ConfigKey      = "filters.yaml"
	ConfigKeyAlias = "node-disk-manager.config"
)

// otherSections of node-disk-manager's configuration are understood and have no
// meaning here.
var otherSections = []string{"probeconfigs", "metaconfigs", "tagconfigs"}

// FromConfigMap reads the filters from the data of the ConfigMap berth-config.
func FromConfigMap(data map[string]string) (*Filters, error) {
	main, hasMain := data[ConfigKey]
	alias, hasAlias := data[ConfigKeyAlias]
	switch {
	case hasMain && hasAlias:
		return nil, fmt.Errorf("both %s and %s are there: keep one of them", ConfigKey, ConfigKeyAlias)
	case hasMain:
		return parseKey(ConfigKey, main)
	case hasAlias:
		return parseKey(ConfigKeyAlias, alias)
	}
	return nil, fmt.Errorf("the key %s is missing", ConfigKey)
}

func parseKey(key, text string) (*Filters, error) {
	filters, err := ParseFilters(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return filters, nil
}

// ParseFilters reads a filter configuration, strictly: a field or a filter that is
// not known is an error that names the line and what is allowed, and then none of
// the configuration counts. A filter that a typing error had switched off would
// hand out the disks that it was to protect. So would one behind a line "---".
func ParseFilters(text string) (*Filters, error) {
	documents := yaml.NewDecoder(strings.NewReader(text))
	document, err := nextDocument(documents)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty: neither filterconfigs nor rules is there")
	case err != nil:
		return nil, err
	}
	for {
		other, err := nextDocument(documents)
		switch {
		case errors.Is(err, io.EOF):
			return parseDocument(document)
		case err != nil:
			return nil, err
		case other.Content[0].Tag != "!!null":
			return nil, fmt.Errorf("line %d: another document begins here, and only one is read: take the line --- out", other.Line)
		}
	}
}

// nextDocument returns io.EOF behind the last one.
func nextDocument(documents *yaml.Decoder) (*yaml.Node, error) {
	var document yaml.Node
	err := documents.Decode(&document)
	switch {
	case err == nil && len(document.Content) == 0, errors.Is(err, io.EOF):
		return nil, io.EOF
	case err != nil:
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return &document, nil
}

func parseDocument(document *yaml.Node) (*Filters, error) {
	p := &parser{filters: &Filters{}}
	p.document(document.Content[0])
	if p.err != nil {
		return nil, p.err
	}
	return p.filters, nil
}

// parser walks the YAML tree and keeps the first error.
type parser struct {
	filters *Filters
	err     error
}

func (p *parser) fail(n *yaml.Node, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...))
	}
}

// fields calls f for every field of a mapping.
func (p *parser) fields(n *yaml.Node, what string, f func(key string, keyNode, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, "%s must be a mapping", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		if seen[key] {
			p.fail(n.Content[i], "field %q stands twice", key)
			return
		}
		seen[key] = true
		f(key, n.Content[i], n.Content[i+1])
	}
}

func (p *parser) document(n *yaml.Node) {
	found := false
	p.fields(n, "the configuration", func(key string, keyNode, value *yaml.Node) {
		switch {
		case key == "filterconfigs":
			found = true
			p.filterConfigs(value)
		case key == "rules":
			found = true
			p.rules(value)
		case key == "otherwise":
			p.filters.dropOthers = !p.action(value, key)
		case slices.Contains(otherSections, key):
			p.filters.Notes = append(p.filters.Notes, fmt.Sprintf("line %d: %s has no effect in Berth", keyNode.Line, key))
		default:
			p.fail(keyNode, "unknown section %q: allowed are filterconfigs, rules, otherwise, %s", key, strings.Join(otherSections, ", "))
		}
	})
	if !found {
		p.fail(n, "neither filterconfigs nor rules is there")
	}
	keeps := func(r orderedRule) bool { return r.keep }
	if p.filters.dropOthers && !slices.ContainsFunc(p.filters.ordered, keeps) {
		p.fail(n, "otherwise: exclude without a rule that includes a disk would drop every disk")
	}
}

func (p *parser) filterConfigs(n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		p.fail(n, "filterconfigs must be a list")
		return
	}
	for _, item := range n.Content {
		p.filterConfig(item)
	}
}

func (p *parser) filterConfig(n *yaml.Node) {
	var r rule
	on, hasState := false, false
	keyLine := n
	var includeNode, excludeNode *yaml.Node
	p.fields(n, "a filter", func(key string, keyNode, value *yaml.Node) {
		switch key {
		case "key":
			r.key, keyLine = p.scalar(value, key), value
		case "name":
			r.name = p.scalar(value, key)
		case "state":
			on, hasState = p.truth(value, key), true
		case "include":
			r.include, includeNode = p.list(value, key), value
		case "exclude":
			r.exclude, excludeNode = p.list(value, key), value
		default:
			p.fail(keyNode, "unknown field %q of a filter: allowed are key, name, state, include, exclude", key)
		}
	})
	switch {
	case r.key == "":
		p.fail(n, "a filter without a key: allowed are %s", strings.Join(filterKeys, ", "))
	case !slices.Contains(filterKeys, r.key):
		p.fail(keyLine, "unknown filter %q: allowed are %s", r.key, strings.Join(filterKeys, ", "))
	case !hasState:
		p.fail(n, "filter %q has no state: write state: true or state: false", r.key)
	}
	if r.name == "" {
		r.name = r.key
	}
	switch r.key {
	case keyOSDisk:
		p.osDisk(&r, n, includeNode)
	case keyPath:
		p.paths(r.include, includeNode)
		p.paths(r.exclude, excludeNode)
	}
	if p.err == nil && on {
		p.filters.rules = append(p.filters.rules, r)
	}
}

// osDisk completes the filter of the system's disks: without a list it means what
// the shipped one means.
func (p *parser) osDisk(r *rule, n, includeNode *yaml.Node) {
	if len(r.include) > 0 {
		p.fail(includeNode, "filter %q has no include: it can only drop", r.key)
	}
	for _, point := range r.exclude {
		if !strings.HasPrefix(point, "/") {
			p.fail(n, "filter %q: %q is not a mount point: it must begin with /", r.key, point)
		}
	}
	if len(r.exclude) == 0 {
		r.exclude = []string{"/", "/etc/hosts", "/boot"}
	}
}

func (p *parser) paths(patterns []string, n *yaml.Node) {
	for _, pattern := range patterns {
		if !strings.HasPrefix(pattern, "/") {
			p.fail(n, "path %q must begin with /", pattern)
		}
		if _, err := path.Match(pattern, ""); err != nil && isGlob(pattern) {
			p.fail(n, "path %q is not a valid glob: %v", pattern, err)
		}
	}
}

func (p *parser) scalar(n *yaml.Node, field string) string {
	if n.Kind != yaml.ScalarNode {
		p.fail(n, "field %q must be a text", field)
		return ""
	}
	if n.Tag == "!!null" {
		return ""
	}
	return strings.TrimSpace(n.Value)
}

// truth takes true and false, as a truth value or as a text.
func (p *parser) truth(n *yaml.Node, field string) bool {
	switch strings.ToLower(p.scalar(n, field)) {
	case "true":
		return true
	case "false":
		return false
	}
	p.fail(n, "%s %q: allowed are true and false", field, n.Value)
	return false
}

// list takes comma-separated texts; empty ones do not count.
func (p *parser) list(n *yaml.Node, field string) []string {
	var list []string
	for part := range strings.SplitSeq(p.scalar(n, field), ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
