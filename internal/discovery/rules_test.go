// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-dev/berth/pkg/block"
)

const someRules = `
filterconfigs:
  - {key: path-filter, name: no loops, state: true, exclude: /dev/loop}
rules:
  - name: this node's cache
    action: include
    nodes: kubernetes.io/hostname in (node1, node2),!old
    match: {models: "Samsung SSD 9*", minSize: 1Gi, maxSize: 2Ti}
  - name: worn out
    action: exclude
    match:
      serials: [S1, "S2*"]
  - name: sticks for backups
    action: include
    match: {removable: true, transports: [usb], vendors: SanDisk}
  - name: by the slot
    action: include
    match:
      paths: ["/dev/disk/by-path/*-ata-[12]", /dev/disk/by-id/nvme-eui]
  - name: disks that turn
    action: exclude
    match: {rotational: true}
  - name: of that array
    action: exclude
    match: {wwns: "0x5000c500*"}
`

func rulesOn(t *testing.T, text string, node labels.Set) *Filters {
	t.Helper()
	filters, err := ParseFilters(text)
	if err != nil {
		t.Fatal(err)
	}
	return filters.forNode(node)
}

func TestTheFirstRuleThatFitsDecides(t *testing.T) {
	t.Parallel()
	node1 := labels.Set{"kubernetes.io/hostname": "node1"}
	cases := []struct {
		name    string
		node    labels.Set
		device  block.Device
		message string
		drop    bool
	}{
		{"no rule fits", node1, block.Device{Path: "/dev/vdb"}, "", false},
		{
			"a model, and its size", node1,
			block.Device{Path: "/dev/sda", Model: "Samsung SSD 990 ", SizeBytes: 1 << 40, Rotational: true},
			`kept by rule "this node's cache": model "Samsung SSD 990" matches "Samsung SSD 9*", it has at least 1Gi, it has at most 2Ti`, false,
		},
		{"a model, too large", node1, block.Device{Path: "/dev/sda", Model: "Samsung SSD 990", SizeBytes: 3 << 40}, "", false},
		{"a model, too small", node1, block.Device{Path: "/dev/sda", Model: "Samsung SSD 990", SizeBytes: 1<<30 - 1}, "", false},
		{"the rule of other nodes", labels.Set{"kubernetes.io/hostname": "node3"}, block.Device{Path: "/dev/sda", Model: "Samsung SSD 990", SizeBytes: 1 << 40}, "", false},
		{"a label that must not be there", labels.Set{"kubernetes.io/hostname": "node1", "old": ""}, block.Device{Path: "/dev/sda", Model: "Samsung SSD 990", SizeBytes: 1 << 40}, "", false},
		{"a serial", node1, block.Device{Path: "/dev/sdb", Serial: "S1"}, `dropped by rule "worn out": serial is "S1"`, true},
		{"a serial's beginning", node1, block.Device{Path: "/dev/sdb", Serial: "S2/x y"}, `dropped by rule "worn out": serial "S2/x y" matches "S2*"`, true},
		{"a serial that goes on", node1, block.Device{Path: "/dev/sdb", Serial: "S11"}, "", false},
		{
			"three fields", node1,
			block.Device{Path: "/dev/sdc", Vendor: "SanDisk", Transport: "usb", Removable: true, Rotational: true},
			`kept by rule "sticks for backups": vendor is "SanDisk", transport is "usb", removable is true`, false,
		},
		{"two of three fields", node1, block.Device{Path: "/dev/sdc", Vendor: "SanDisk", Transport: "usb"}, "", false},
		{
			"a link by a glob", node1,
			block.Device{Path: "/dev/sdd", Links: []string{"/dev/disk/by-path/pci-0000:00:1f.2-ata-2"}},
			`kept by rule "by the slot": /dev/disk/by-path/pci-0000:00:1f.2-ata-2 matches /dev/disk/by-path/*-ata-[12]`, false,
		},
		{
			"a link by its beginning", node1,
			block.Device{Path: "/dev/nvme0n1", Links: []string{"/dev/disk/by-id/nvme-eui.01"}},
			`kept by rule "by the slot": /dev/disk/by-id/nvme-eui.01 starts with /dev/disk/by-id/nvme-eui`, false,
		},
		{"it turns", node1, block.Device{Path: "/dev/sde", Rotational: true}, `dropped by rule "disks that turn": rotational is true`, true},
		{"any of the world-wide names", node1, block.Device{Path: "/dev/sdf", NGUID: "x", WWN: "0x5000c5001"}, `dropped by rule "of that array": wwn "0x5000c5001" matches "0x5000c500*"`, true},
		{"a filter comes before every rule", node1, block.Device{Path: "/dev/loop1", Model: "Samsung SSD 9", SizeBytes: 1 << 40}, `dropped by filter "no loops": /dev/loop1 starts with /dev/loop`, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := rulesOn(t, someRules, c.node).Decide(&c.device, nil)
			if got.Message != c.message || got.Drop != c.drop || got.Named != (c.message != "" && !c.drop) {
				t.Errorf("Decide = %+v, want %q, dropped %v", got, c.message, c.drop)
			}
		})
	}
}

func TestOtherwiseExclude(t *testing.T) {
	t.Parallel()
	filters := rulesOn(t, "rules: [{name: mine, action: include, match: {paths: [/dev/vdb]}}]\notherwise: exclude", nil)
	if got := filters.Decide(&block.Device{Path: "/dev/vdb"}, nil); got.Drop || !got.Named {
		t.Errorf("the disk that is named: %+v", got)
	}
	got := filters.Decide(&block.Device{Path: "/dev/vdc"}, nil)
	if !got.Drop || got.Message != "dropped because no rule keeps it and berth-config says otherwise: exclude" {
		t.Errorf("another disk: %+v", got)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	t.Parallel()
	wantRefused(t, []refusedText{
		{"no list", "rules: {}", []string{"line 1", "list"}},
		{"no name", "rules:\n- {action: include, match: {models: a}}", []string{"line 2", "without a name"}},
		{"no action", "rules:\n- {name: a, match: {models: a}}", []string{"line 2", `"a" has no action`}},
		{"no match", "rules:\n- {name: a, action: exclude}", []string{"line 2", "no match", "paths, vendors"}},
		{"another action", "rules:\n- name: a\n  action: drop\n  match: {models: a}", []string{"line 3", `"drop"`, "include and exclude"}},
		{"a misspelt field", "rules:\n- name: a\n  node: x=y", []string{"line 3", `"node"`, "name, action, nodes, match"}},
		{"a misspelt field of match", "rules:\n- name: a\n  match:\n    model: a", []string{"line 4", `"model"`, "models"}},
		{"an empty match", "rules:\n- {name: a, action: exclude, match: {}}", []string{"line 2", "match is empty"}},
		{"an empty list", "rules:\n- {name: a, action: exclude, match: {models: []}}", []string{"line 2", "models is empty"}},
		{"an empty entry", "rules:\n- {name: a, action: exclude, match: {models: ['']}}", []string{"line 2", "models", "empty"}},
		{"a bad glob", "rules:\n- {name: a, action: exclude, match: {serials: '[a'}}", []string{"line 2", "serials", "[a", "glob"}},
		{"a relative path", "rules:\n- {name: a, action: exclude, match: {paths: sda}}", []string{"line 2", `"sda"`, "begin with /"}},
		{"no truth", "rules:\n- {name: a, action: exclude, match: {rotational: yes please}}", []string{"line 2", "rotational", "true and false"}},
		{"no size", "rules:\n- {name: a, action: exclude, match: {minSize: big}}", []string{"line 2", "minSize", "100Gi"}},
		{"a negative size", "rules:\n- {name: a, action: exclude, match: {maxSize: -1}}", []string{"line 2", "maxSize"}},
		{"sizes the wrong way round", "rules:\n- {name: a, action: exclude, match: {minSize: 2Gi, maxSize: 1Gi}}", []string{"line 2", "2Gi", "1Gi", "no disk"}},
		{"no selector", "rules:\n- {name: a, action: exclude, nodes: 'a in', match: {models: a}}", []string{"line 2", "nodes", "label selector"}},
		{"an empty selector", "rules:\n- {name: a, action: exclude, nodes: '', match: {models: a}}", []string{"line 2", "nodes is empty"}},
		{"a name twice", "rules:\n- {name: a, action: exclude, match: {models: a}}\n- {name: a, action: exclude, match: {models: b}}", []string{"line 3", `"a" stands twice`}},
		{"nothing is left", "rules:\n- {name: a, action: exclude, match: {models: a}}\notherwise: exclude", []string{"otherwise", "every disk"}},
		{"another otherwise", "rules: []\notherwise: never", []string{"line 2", `otherwise "never"`, "include and exclude"}},
	})
}

// TestRulesFollowTheLabelsOfTheNode has the labels change, before and after the
// configuration came.
func TestRulesFollowTheLabelsOfTheNode(t *testing.T) {
	t.Parallel()
	inv := newTestInventory(t, newFakeHost(t), newFakeClient(t)).Inventory
	inv.SetNodeLabels(labels.Set{"disks": "mine"})
	text := "rules: [{name: mine, action: exclude, nodes: disks=mine, match: {paths: [/dev/]}}]"
	if err := inv.SetConfig(config(text)); err != nil {
		t.Fatal(err)
	}
	dropped := func() bool {
		inv.mu.Lock()
		defer inv.mu.Unlock()
		return inv.filters.Decide(&block.Device{Path: "/dev/vdb"}, nil).Drop
	}
	if !dropped() {
		t.Errorf("the rule of this node does not count")
	}
	inv.SetNodeLabels(labels.Set{"disks": "yours"})
	if dropped() {
		t.Errorf("the rule counts on a node that lost the label")
	}
	if err := inv.SetConfig(config("rules: {}")); err == nil {
		t.Fatal("a broken configuration was taken")
	}
	inv.SetNodeLabels(labels.Set{"disks": "mine"})
	if !dropped() {
		t.Errorf("the last good configuration does not follow the labels")
	}
}
