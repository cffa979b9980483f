// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"path/filepath"
	"regexp"
	"strings"
)

// uidPattern is a pod's UID as the API server makes it.
var uidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

const slice = ".slice"

// kubepodsOf reports whether a group is the one that kubelet puts all pods into. Under
// the driver systemd a slice's name repeats those of its parents, with "-" between them;
// kubelet's --cgroup-root gives it parents.
func kubepodsOf(name string) bool {
	base := filepath.Base(name)
	if base == "kubepods" || base == "kubepods"+slice {
		return true
	}
	parent := filepath.Base(filepath.Dir(name))
	return strings.HasSuffix(parent, slice) && base == strings.TrimSuffix(parent, slice)+"-kubepods"+slice
}

// classOf reports whether a group right below kubepods holds the pods of one QoS class.
// Pods of the class Guaranteed have none: they are right below kubepods.
func classOf(kubepods, name string) bool {
	return name == groupIn(kubepods, "burstable") || name == groupIn(kubepods, "besteffort")
}

// groupIn is what kubelet calls the group of that name below another one.
func groupIn(parent, name string) string {
	base := filepath.Base(parent)
	if prefix, systemd := strings.CutSuffix(base, slice); systemd {
		return prefix + "-" + name + slice
	}
	return name
}

// podOf returns the UID of the pod whose group has that name, and false for one that is
// no pod's.
func podOf(parent, name string) (uid string, ok bool) {
	base := filepath.Base(parent)
	if prefix, systemd := strings.CutSuffix(base, slice); systemd {
		name, ok = strings.CutPrefix(name, prefix+"-pod")
		if !ok || strings.Contains(name, "-") {
			return "", false
		}
		if name, ok = strings.CutSuffix(name, slice); !ok {
			return "", false
		}
		uid = strings.ReplaceAll(name, "_", "-")
	} else if uid, ok = strings.CutPrefix(name, "pod"); !ok {
		return "", false
	}
	return uid, uidPattern.MatchString(uid)
}
