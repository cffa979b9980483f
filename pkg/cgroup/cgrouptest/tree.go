// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgrouptest

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// keys of io.max, in the order in which the kernel prints them.
var keys = []string{"rbps", "wbps", "riops", "wiops"}

// Tree is a hierarchy. It implements cgroup.Files and is safe for concurrent use.
type Tree struct {
	// Fail, where set, may refuse a Read or Write before it has any effect.
	Fail func(verb, name string) error

	mu          sync.Mutex
	throttling  bool
	controllers []string
	devices     map[string]bool
	groups      map[string]*group
	writes      []string
}

type group struct {
	subtree map[string]bool
	// limits by device and key; what is not there is "max".
	limits map[string]map[string]string
}

// New returns a hierarchy whose root has these controllers, on a host with these block
// devices ("253:3").
func New(controllers []string, devices ...string) *Tree {
	t := &Tree{throttling: true, controllers: controllers, devices: map[string]bool{}, groups: map[string]*group{".": newGroup()}}
	for _, device := range devices {
		t.devices[device] = true
	}
	return t
}

func newGroup() *group {
	return &group{subtree: map[string]bool{}, limits: map[string]map[string]string{}}
}

// WithoutThrottling is a kernel without CONFIG_BLK_DEV_THROTTLING.
func (t *Tree) WithoutThrottling() *Tree { t.throttling = false; return t }

// Make makes a group and those above it that are missing.
func (t *Tree) Make(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for dir := name; dir != "."; dir = filepath.Dir(dir) {
		if t.groups[dir] == nil {
			t.groups[dir] = newGroup()
		}
	}
}

// Remove removes a group and all below it.
func (t *Tree) Remove(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.groups, func(dir string, _ *group) bool { return dir == name || strings.HasPrefix(dir, name+"/") })
}

// Writes returns what was written since the last call, as "file: content".
func (t *Tree) Writes() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	writes := t.writes
	t.writes = nil
	return writes
}

// Directories implements cgroup.Files.
func (t *Tree) Directories(name string) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.groups[name] == nil {
		return nil, notExist("open", name)
	}
	var names []string
	for dir := range t.groups {
		if dir != "." && filepath.Dir(dir) == name {
			names = append(names, filepath.Base(dir))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Read implements cgroup.Files.
func (t *Tree) Read(name string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.refuse("read", name); err != nil {
		return "", err
	}
	dir, file := filepath.Dir(name), filepath.Base(name)
	g := t.groups[dir]
	switch {
	case g == nil:
	case file == "cgroup.controllers":
		return strings.Join(t.available(dir), " ") + "\n", nil
	case file == "cgroup.subtree_control":
		return strings.Join(slices.Sorted(maps.Keys(g.subtree)), " ") + "\n", nil
	case file == "io.max" && t.hasLimits(dir):
		return g.text(), nil
	}
	return "", notExist("open", name)
}

// Write implements cgroup.Files.
func (t *Tree) Write(name, content string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.refuse("write", name); err != nil {
		return err
	}
	dir, file := filepath.Dir(name), filepath.Base(name)
	g := t.groups[dir]
	var err error
	switch {
	case g == nil:
		err = notExist("open", name)
	case file == "cgroup.subtree_control":
		err = t.control(dir, strings.TrimSpace(content))
	case file == "io.max" && t.hasLimits(dir):
		err = g.limit(t.devices, strings.Fields(content))
	default:
		err = notExist("open", name)
	}
	if err == nil {
		t.writes = append(t.writes, name+": "+content)
	}
	return err
}

func (t *Tree) refuse(verb, name string) error {
	if t.Fail == nil {
		return nil
	}
	return t.Fail(verb, name)
}

// available are the controllers that a group has: those that the one above hands down.
func (t *Tree) available(dir string) []string {
	if dir == "." {
		return t.controllers
	}
	return slices.Sorted(maps.Keys(t.groups[filepath.Dir(dir)].subtree))
}

func (t *Tree) hasLimits(dir string) bool {
	return dir != "." && t.throttling && slices.Contains(t.available(dir), "io")
}

// control does what cgroup_subtree_control_write does with one controller.
func (t *Tree) control(dir, word string) error {
	if len(word) < 2 {
		return syscall.EINVAL
	}
	name := word[1:]
	switch word[0] {
	case '+':
		if !slices.Contains(t.available(dir), name) {
			return syscall.ENOENT
		}
		t.groups[dir].subtree[name] = true
		return nil
	case '-':
		for below, g := range t.groups {
			if below != "." && filepath.Dir(below) == dir && g.subtree[name] {
				return syscall.EBUSY
			}
		}
		delete(t.groups[dir].subtree, name)
		for below, g := range t.groups {
			if name == "io" && below != "." && filepath.Dir(below) == dir {
				clear(g.limits)
			}
		}
		return nil
	}
	return syscall.EINVAL
}

// limit does what tg_set_limit does with one line.
func (g *group) limit(devices map[string]bool, words []string) error {
	if len(words) == 0 {
		return syscall.EINVAL
	}
	device := words[0]
	if !devices[device] {
		return syscall.ENODEV
	}
	changed := maps.Clone(g.limits[device])
	if changed == nil {
		changed = map[string]string{}
	}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		switch {
		case !slices.Contains(keys, key):
			return syscall.EINVAL
		case value == "max":
			delete(changed, key)
		case err != nil:
			return syscall.EINVAL
		case n == 0:
			return syscall.ERANGE
		default:
			changed[key] = value
		}
	}
	g.limits[device] = changed
	return nil
}

func (g *group) text() string {
	var b strings.Builder
	for _, device := range slices.Sorted(maps.Keys(g.limits)) {
		limits := g.limits[device]
		if len(limits) == 0 {
			continue
		}
		b.WriteString(device)
		for _, key := range keys {
			value, ok := limits[key]
			if !ok {
				value = "max"
			}
			fmt.Fprintf(&b, " %s=%s", key, value)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func notExist(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: syscall.ENOENT}
}
