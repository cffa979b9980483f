// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// ErrNotEnforceable: the host cannot limit the I/O of pods. The error says what is
// missing.
var ErrNotEnforceable = errors.New("the I/O of pods cannot be limited on this node")

const (
	controllersFile = "cgroup.controllers"
	subtreeFile     = "cgroup.subtree_control"
	limitsFile      = "io.max"
	controller      = "io"

	// depth is how far below the root kubelet's group is looked for: it is right there,
	// unless kubelet's --cgroup-root says otherwise (kind: "kubelet").
	depth = 2
)

// Pods are the groups of the pods of a host.
type Pods struct{ files Files }

// NewPods returns the groups of pods in a hierarchy.
func NewPods(files Files) *Pods { return &Pods{files: files} }

// Check reports whether limits can be enforced, without changing anything: nil, or an
// error that wraps ErrNotEnforceable and says why not. Any other error says nothing.
func (p *Pods) Check() error {
	has, err := p.hasController(".", controllersFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: /sys/fs/cgroup of the host is no cgroup v2", ErrNotEnforceable)
	case err != nil:
		return fmt.Errorf("look for the controller io: %w", err)
	case !has:
		return fmt.Errorf("%w: cgroup v2 of the host has no controller io (a kernel without it, or it is taken by cgroup v1)", ErrNotEnforceable)
	}
	groups, err := p.kubepods()
	if err != nil {
		return err
	}
	for _, group := range groups {
		if err := p.checkThrottling(group); err != nil {
			return err
		}
	}
	return nil
}

// checkThrottling makes sure that a group with the controller io has io.max, which a
// kernel without CONFIG_BLK_DEV_THROTTLING leaves out.
func (p *Pods) checkThrottling(group string) error {
	has, err := p.hasController(group, controllersFile)
	if err != nil || !has {
		return err // without the controller nothing is known; Limit enables it
	}
	_, err = p.files.Read(filepath.Join(group, limitsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the group %s has no io.max; the kernel needs CONFIG_BLK_DEV_THROTTLING", ErrNotEnforceable, group)
	}
	return err
}

// kubepods returns the groups that kubelet puts all pods into: one, or none before it
// has started.
func (p *Pods) kubepods() ([]string, error) {
	var found []string
	level := []string{"."}
	for range depth {
		var below []string
		for _, parent := range level {
			names, err := p.files.Directories(parent)
			if errors.Is(err, fs.ErrNotExist) && parent != "." {
				continue // it ended meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("look for kubelet's cgroup: %w", err)
			}
			for _, name := range names {
				below = append(below, filepath.Join(parent, name))
			}
		}
		for _, group := range below {
			if kubepodsOf(group) {
				found = append(found, group)
			}
		}
		if len(found) > 0 {
			return found, nil
		}
		level = below
	}
	return found, nil
}

// parents returns the groups that pods are right below.
func (p *Pods) parents() ([]string, error) {
	roots, err := p.kubepods()
	if err != nil {
		return nil, err
	}
	parents := slices.Clone(roots)
	for _, root := range roots {
		names, err := p.files.Directories(root)
		if err != nil {
			return nil, fmt.Errorf("look for the cgroups of pods: %w", err)
		}
		for _, name := range names {
			if classOf(root, name) {
				parents = append(parents, filepath.Join(root, name))
			}
		}
	}
	return parents, nil
}

// Find returns the group of a pod. volume.ErrNotFound: every place where it could be was
// looked at, and it is not there.
func (p *Pods) Find(uid string) (string, error) {
	parents, err := p.parents()
	if err != nil {
		return "", err
	}
	for _, parent := range parents {
		names, err := p.files.Directories(parent)
		if err != nil {
			return "", fmt.Errorf("look for the cgroup of pod %s: %w", uid, err)
		}
		for _, name := range names {
			if found, ok := podOf(parent, name); ok && found == uid {
				return filepath.Join(parent, name), nil
			}
		}
	}
	return "", fmt.Errorf("cgroup of pod %s: %w", uid, volume.ErrNotFound)
}

// Limit has a pod held to these limits on a device, and to no others; zero limits take
// those away that there are. A repeated call writes nothing. Where the controller io is
// not enabled for pods yet, it is, in the groups above the pod's and nowhere else.
//
// volume.ErrNotFound: the pod has no group (yet), or it has ended meanwhile.
// ErrNotEnforceable: the host cannot do it.
func (p *Pods) Limit(uid string, device Number, limits volume.Limits) error {
	group, err := p.Find(uid)
	if err != nil {
		return err
	}
	if err := p.limit(group, device, limits); err != nil {
		if _, gone := p.Find(uid); errors.Is(gone, volume.ErrNotFound) {
			return gone
		}
		return fmt.Errorf("limit pod %s on device %s: %w", uid, device, err)
	}
	return nil
}

func (p *Pods) limit(group string, device Number, limits volume.Limits) error {
	file := filepath.Join(group, limitsFile)
	content, err := p.files.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		if limits.IsZero() {
			return nil // without the controller nothing is limited
		}
		if err := p.enable(group); err != nil {
			return err
		}
		if content, err = p.files.Read(file); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the group %s has no io.max although the controller io is enabled; the kernel needs CONFIG_BLK_DEV_THROTTLING", ErrNotEnforceable, group)
		}
	}
	if err != nil {
		return err
	}
	// What cannot be read is written anew.
	if have, err := parseLimits(content, device); err == nil && have == limits {
		return nil
	}
	if err := p.files.Write(file, formatLimits(device, limits)); err != nil {
		return err
	}
	if content, err = p.files.Read(file); err != nil {
		return err
	}
	have, err := parseLimits(content, device)
	if err == nil && have != limits {
		err = fmt.Errorf("the kernel took %+v for %+v", have, limits)
	}
	return err
}

// enable has the group's parents hand the controller io down to it, from the root on.
func (p *Pods) enable(group string) error {
	var above []string
	for dir := filepath.Dir(group); ; dir = filepath.Dir(dir) {
		above = append(above, dir)
		if dir == "." {
			break
		}
	}
	slices.Reverse(above)
	for _, dir := range above {
		enabled, err := p.hasController(dir, subtreeFile)
		if err != nil {
			return fmt.Errorf("look whether the controller io is enabled: %w", err)
		}
		if enabled {
			continue
		}
		has, err := p.hasController(dir, controllersFile)
		if err != nil {
			return fmt.Errorf("look for the controller io: %w", err)
		}
		if !has {
			return fmt.Errorf("%w: the group %s has no controller io", ErrNotEnforceable, dir)
		}
		if err := p.files.Write(filepath.Join(dir, subtreeFile), "+"+controller); err != nil {
			return fmt.Errorf("%w: the controller io cannot be enabled below the group %s: %w", ErrNotEnforceable, dir, err)
		}
	}
	return nil
}

// hasController reports whether a list of controllers has io.
func (p *Pods) hasController(group, file string) (bool, error) {
	content, err := p.files.Read(filepath.Join(group, file))
	return slices.Contains(strings.Fields(content), controller), err
}
