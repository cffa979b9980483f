// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
)

func TestResourceOf(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/api/v1/namespaces/x/pods/y":                        "pods",
		"/api/v1/persistentvolumes/y":                        "persistentvolumes",
		"/api/v1/namespaces/x":                               "namespaces",
		"/apis/berth.dev/v1alpha1/localvolumes":              "localvolumes",
		"/apis/coordination.k8s.io/v1/namespaces/x/leases/y": "leases",
		"/metrics": "",
		"/api/v1/namespaces/x/persistentvolumeclaims/y/status":  "persistentvolumeclaims",
		"/apis/storage.k8s.io/v1/namespaces/n/csistoragecapacs": "csistoragecapacs",
	} {
		if got := resourceOf(path); got != want {
			t.Errorf("resourceOf(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestStartedPrograms(t *testing.T) {
	t.Parallel()
	counts, err := parseStarted("    200 /usr/sbin/lvm\n      3 /usr/bin/bash\n    100 /usr/sbin/mkfs.ext4\n      1 /usr/bin/date\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := started(counts, 100), "2.00 lvm, 1.00 mkfs.ext4"; got != want {
		t.Errorf("started %q, want %q", got, want)
	}
	if got := started(nil, 100); got != "none" {
		t.Errorf("nothing started: %q", got)
	}
	if _, err := parseStarted("many /usr/sbin/lvm\n"); err == nil {
		t.Error("a word was taken for a count")
	}
}

func TestResidentMemory(t *testing.T) {
	t.Parallel()
	resident, err := parseResident(" 1024 node-agent\n 2048 a-very-long-nam\n   12 kworker/0:1\n  512 node-agent\n", []string{"node-agent", "a-very-long-name"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(resident), "map[a-very-long-name:[2048] node-agent:[1024 512]]"; got != want {
		t.Errorf("resident %s, want %s", got, want)
	}
}
