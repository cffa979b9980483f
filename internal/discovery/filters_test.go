// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

func TestParseFiltersOfNodeDiskManager(t *testing.T) {
	t.Parallel()
	// As in the documentation of node-disk-manager, with the sections that it has and
	// Berth has not.
	filters, err := FromConfigMap(map[string]string{ConfigKeyAlias: `
probeconfigs:
  - key: udev-probe
    name: udev probe
    state: true
filterconfigs:
  - key: os-disk-exclude-filter
    name: os disk exclude filter
    state: true
    exclude: "/,/etc/hosts,/boot"
  - key: vendor-filter
    name: vendor filter
    state: true
    include: ""
    exclude: "CLOUDBYT,OpenEBS"
  - key: path-filter
    name: path filter
    state: "true"
    include: ""
    exclude: "/dev/loop, /dev/fd0,/dev/disk/by-id/usb-*"
tagconfigs:
  - name: a
`})
	if err != nil {
		t.Fatal(err)
	}
	if len(filters.Notes) != 2 {
		t.Errorf("notes: %q, want one for each section without effect", filters.Notes)
	}
	cases := []struct {
		name   string
		device block.Device
		system *block.SystemUse
		want   string // the message, "" for kept
	}{
		{"a plain disk", block.Device{Path: "/dev/vdb"}, nil, ""},
		{"the system's disk", block.Device{Path: "/dev/vda"}, &block.SystemUse{MountPoint: "/", Path: "/dev/vda1"}, "holds the OS: / is mounted from /dev/vda1"},
		{"a vendor, in another case", block.Device{Path: "/dev/sdb", Vendor: "openebs"}, nil, `dropped by filter "vendor filter": vendor "openebs" is excluded`},
		{"a vendor that begins so", block.Device{Path: "/dev/sdb", Vendor: "OpenEBSX"}, nil, ""},
		{"a path that begins so", block.Device{Path: "/dev/loop0"}, nil, `dropped by filter "path filter": /dev/loop0 starts with /dev/loop`},
		{
			"a link that matches a glob",
			block.Device{Path: "/dev/sdc", Links: []string{"/dev/disk/by-id/usb-Stick"}},
			nil,
			`dropped by filter "path filter": /dev/disk/by-id/usb-Stick matches /dev/disk/by-id/usb-*`,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := filters.Decide(&c.device, c.system)
			if got.Drop != (c.want != "") || got.Message != c.want {
				t.Errorf("Decide = %+v, want %q", got, c.want)
			}
		})
	}
}

func TestIncludeKeepsOnlyWhatItNames(t *testing.T) {
	t.Parallel()
	filters, err := ParseFilters("filterconfigs:\n- {key: path-filter, name: p, state: true, include: /dev/vdb, exclude: /dev/vdb1}\n- {key: vendor-filter, name: v, state: true, include: ACME}\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device block.Device
		want   string
		named  bool
	}{
		{block.Device{Path: "/dev/vdb", Vendor: "acme"}, "", true},
		{block.Device{Path: "/dev/vdc", Vendor: "acme"}, `dropped by filter "p": /dev/vdc is not among the paths included`, false},
		{block.Device{Path: "/dev/vdb1", Vendor: "acme"}, `dropped by filter "p": /dev/vdb1 starts with /dev/vdb1`, false},
		{block.Device{Path: "/dev/vdb", Vendor: "other"}, `dropped by filter "v": vendor "other" is not among those included`, false},
	} {
		if got := filters.Decide(&c.device, nil); got.Message != c.want || got.Named != c.named {
			t.Errorf("%s of %s: %+v, want %q", c.device.Path, c.device.Vendor, got, c.want)
		}
	}
}

// refusedText is a configuration that must not be taken, and words of the reason.
type refusedText struct {
	name, text string
	want       []string
}

func wantRefused(t *testing.T, cases []refusedText) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			filters, err := ParseFilters(c.text)
			if err == nil {
				t.Fatalf("taken: %+v", filters)
			}
			for _, word := range c.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		})
	}
}

func TestParseFiltersRefuses(t *testing.T) {
	t.Parallel()
	wantRefused(t, []refusedText{
		{"nothing", "", []string{"empty", "filterconfigs"}},
		{"no filters", "probeconfigs: []", []string{"neither filterconfigs nor rules"}},
		{"a misspelt section", "filterconfigs: []\nfilterconfig: []", []string{"line 2", `"filterconfig"`, "allowed are filterconfigs"}},
		{"a misspelt filter", "filterconfigs:\n- key: path-filters\n  state: true", []string{"line 2", `"path-filters"`, "os-disk-exclude-filter, vendor-filter, path-filter"}},
		{"a misspelt field", "filterconfigs:\n- key: path-filter\n  state: true\n  excludes: /dev/loop", []string{"line 4", `"excludes"`, "key, name, state, include, exclude"}},
		{"no key", "filterconfigs:\n- state: true", []string{"line 2", "without a key"}},
		{"no state", "filterconfigs:\n- key: path-filter", []string{"line 2", "state"}},
		{"a state that is neither", "filterconfigs:\n- key: path-filter\n  state: on", []string{"line 3", `"on"`, "true and false"}},
		{"a field twice", "filterconfigs:\n- key: path-filter\n  state: true\n  state: false", []string{"line 4", "twice"}},
		{"a list for a text", "filterconfigs:\n- key: path-filter\n  state: true\n  exclude: [/dev/loop]", []string{"line 4", "exclude", "text"}},
		{"a relative path", "filterconfigs:\n- key: path-filter\n  state: true\n  exclude: loop", []string{"line 4", `"loop"`}},
		{"a bad glob", "filterconfigs:\n- key: path-filter\n  state: true\n  exclude: '/dev/[a'", []string{"line 4", "/dev/[a", "glob"}},
		{"an include for the system's disks", "filterconfigs:\n- key: os-disk-exclude-filter\n  state: true\n  include: /", []string{"line 4", "include"}},
		{"a mount point that is none", "filterconfigs:\n- key: os-disk-exclude-filter\n  state: true\n  exclude: root", []string{"root"}},
		{"a mapping for the list", "filterconfigs: {}", []string{"line 1", "list"}},
		{"broken YAML", "filterconfigs:\n\t- key", []string{"line 2"}},
		{"a text", "hello", []string{"mapping"}},
		{"a second document", DefaultFilters + "---\nrules: []\n", []string{"line 25", "another document"}},
		{"a second document that is broken", "filterconfigs: []\n---\n\t- key", []string{"line 3"}},
	})
}

func TestFromConfigMap(t *testing.T) {
	t.Parallel()
	if _, err := FromConfigMap(map[string]string{ConfigKey: DefaultFilters}); err != nil {
		t.Errorf("the shipped configuration: %v", err)
	}
	if _, err := FromConfigMap(map[string]string{ConfigKey: "---\n" + DefaultFilters + "---\n# nothing more\n"}); err != nil {
		t.Errorf("with nothing behind a line ---: %v", err)
	}
	for name, data := range map[string]map[string]string{
		"both keys": {ConfigKey: DefaultFilters, ConfigKeyAlias: DefaultFilters},
		"no key":    {"other": DefaultFilters},
		"no data":   nil,
	} {
		if _, err := FromConfigMap(data); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestFiltersThatAreOffDoNothing(t *testing.T) {
	t.Parallel()
	filters, err := ParseFilters("filterconfigs:\n- {key: os-disk-exclude-filter, state: false}\n- {key: path-filter, state: \"false\", exclude: /dev/vdb}\n")
	if err != nil {
		t.Fatal(err)
	}
	if points := filters.SystemMountPoints(); len(points) != 0 {
		t.Errorf("mount points of a filter that is off: %v", points)
	}
	if got := filters.Decide(&block.Device{Path: "/dev/vdb"}, nil); got.Drop {
		t.Errorf("dropped by a filter that is off: %+v", got)
	}
}

func FuzzParseFilters(f *testing.F) {
	f.Add(DefaultFilters)
	f.Add("filterconfigs:\n- key: path-filter\n  state: true\n  exclude: '/dev/[a-z]*'")
	f.Add("filterconfigs: &a\n- *a")
	f.Add("{filterconfigs: [{key: vendor-filter, state: !!str true}]}")
	f.Add("rules:\n- name: big\n  action: include\n  nodes: disk in (ssd, nvme)\n  match: {models: 'ST*', minSize: 1Ti, rotational: true}\notherwise: exclude")
	f.Add("rules:\n- {name: a, action: exclude, match: {paths: ['/dev/disk/by-id/wwn-*', /dev/sd?], maxSize: 10Gi}}\notherwise: {}")
	f.Fuzz(func(t *testing.T, text string) {
		filters, err := ParseFilters(text)
		if (err == nil) == (filters == nil) {
			t.Fatalf("filters %v, error %v", filters, err)
		}
		if err == nil {
			filters.Decide(&block.Device{Path: "/dev/vdb", Vendor: "x"}, nil)
		}
	})
}
