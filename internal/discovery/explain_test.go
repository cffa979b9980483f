// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/tests/contents"
)

// TestExplainSaysWhatTheAgentSays compares with the object that an inventory writes.
func TestExplainSaysWhatTheAgentSays(t *testing.T) {
	sample := contents.All()[0]
	cases := []struct {
		name, config string
		content      func(path string) error
		reason, rule string
	}{
		{
			"blank, and named", "filterconfigs: [{key: path-filter, state: true, include: /dev/loop}]",
			nil, v1alpha1.ReasonBlank, "no filter and no rule names it",
		},
		{
			"blank, kept by a rule", "rules: [{name: loops, action: include, match: {paths: [/dev/loop]}}]",
			nil, v1alpha1.ReasonBlank, `kept by rule "loops": PATH starts with /dev/loop`,
		},
		{
			"somebody's, kept by a rule", "rules: [{name: loops, action: include, match: {paths: [/dev/loop]}}]",
			sample.Disk, v1alpha1.ReasonHasContent, `kept by rule "loops": PATH starts with /dev/loop`,
		},
		{
			"dropped by a rule", "rules: [{name: loops, action: exclude, match: {paths: [/dev/loop]}}]",
			nil, v1alpha1.ReasonFiltered, `dropped by rule "loops": PATH starts with /dev/loop`,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			disk := newLoopFile(t)
			if c.content != nil {
				if err := c.content(disk.file); err != nil {
					t.Fatal(err)
				}
			}
			disk.attach()
			host, err := hostexec.New(hostexec.Options{})
			if err != nil {
				t.Fatal(err)
			}
			filters, err := ParseFilters(c.config)
			if err != nil {
				t.Fatal(err)
			}
			all, err := Explain(t.Context(), ExplainOptions{Filters: filters, HostRoot: "", Runner: host})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(all, func(e Explanation) bool { return e.Path == disk.node })
			if i < 0 {
				t.Fatalf("%s is not among %+v", disk.node, all)
			}
			got := all[i]
			rule := strings.ReplaceAll(c.rule, "PATH", disk.node)
			if got.Reason != c.reason || got.Rule != rule || got.Usable != (c.reason == v1alpha1.ReasonBlank) {
				t.Errorf("%+v, want reason %s and rule %q", got, c.reason, rule)
			}
			if c.reason == v1alpha1.ReasonFiltered {
				return // an agent has no object for a loop device that the filters drop
			}
			inv := startLive(t, newFakeClient(t))
			if err := inv.SetConfig(config(c.config)); err != nil {
				t.Fatal(err)
			}
			bd := await(t, inv, disk.name(), "attached", reasonIs(c.reason))
			if said := condition(&bd.Status).Message; said != got.Message {
				t.Errorf("the agent says %q, explained was %q", said, got.Message)
			}
		})
	}
}
