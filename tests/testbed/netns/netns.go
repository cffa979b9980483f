// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns keeps a test cluster's network: a network namespace without an
// uplink, a bridge in it, and a tap device per guest. Nothing leaves it and
// nothing gets in but by entering it.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bridge is the bridge's name in every namespace.
const Bridge = "br0"

// Namespace is a network namespace by its name.
type Namespace struct{ Name string }

// directory is where ip(8) keeps named namespaces.
const directory = "/run/netns"

func (n Namespace) path() string { return filepath.Join(directory, n.Name) }

// Exists tells whether the namespace is there.
func (n Namespace) Exists() bool {
	_, err := os.Stat(n.path())
	return err == nil
}

// Create makes the namespace with its loopback up and a bridge that has the
// address (as "192.0.2.1/24"). It fails if the namespace exists.
func (n Namespace) Create(ctx context.Context, address string) error {
	if err := ip(ctx, "netns", "add", n.Name); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", Bridge, "type", "bridge", "stp_state", "0"},
		{"address", "add", address, "dev", Bridge},
		{"link", "set", Bridge, "up"},
	} {
		if err := ip(ctx, append([]string{"-n", n.Name}, argv...)...); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes the namespace and all devices in it. Nothing to remove is no
// error.
func (n Namespace) Delete(ctx context.Context) error {
	if !n.Exists() {
		return nil
	}
	return ip(ctx, "netns", "delete", n.Name)
}

// AddRoute routes a network through a gateway.
func (n Namespace) AddRoute(ctx context.Context, network, gateway string) error {
	return ip(ctx, "-n", n.Name, "route", "replace", network, "via", gateway)
}

// AddTap makes a tap device on the bridge, or joins one that exists to it.
func (n Namespace) AddTap(ctx context.Context, tap string) error {
	if err := ip(ctx, "-n", n.Name, "link", "show", "dev", tap); err != nil {
		if err := ip(ctx, "-n", n.Name, "tuntap", "add", "dev", tap, "mode", "tap"); err != nil {
			return err
		}
	}
	return n.Join(ctx, tap)
}

// Join connects a tap device to the bridge.
func (n Namespace) Join(ctx context.Context, tap string) error {
	return ip(ctx, "-n", n.Name, "link", "set", "dev", tap, "master", Bridge, "up")
}

// Part disconnects a tap device from the bridge. The guest's link stays up: its
// packets are lost, as when a switch fails.
func (n Namespace) Part(ctx context.Context, tap string) error {
	return ip(ctx, "-n", n.Name, "link", "set", "dev", tap, "nomaster")
}

// Command puts in front of a command what runs it in the namespace. The command
// replaces that, so it has the process's pid.
func (n Namespace) Command(argv ...string) []string {
	return append([]string{"ip", "netns", "exec", n.Name}, argv...)
}

// PIDs lists the processes in the namespace.
func (n Namespace) PIDs(ctx context.Context) ([]int, error) {
	if !n.Exists() {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, "ip", "netns", "pids", n.Name).Output()
	if err != nil {
		return nil, fmt.Errorf("list processes of network namespace %s: %w", n.Name, err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list processes of network namespace %s: %q is no pid", n.Name, field)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Do calls f on a thread that is in the namespace. What f opens (a listener, a
// connection) stays in it; goroutines that f starts are not in it.
func (n Namespace) Do(f func() error) error {
	target, err := os.Open(n.path())
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer target.Close()
	done := make(chan error, 1)
	go onOwnThread(func() {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", n.Name, err)
			return
		}
		done <- f()
	})
	return <-done
}

// onOwnThread calls f on a thread that runs nothing else and that ends with the
// calling goroutine, so that no other goroutine finds itself in f's namespace. It
// is never the process's first thread: that one cannot end, and stands for the
// whole process in /proc, so the process would be counted into the namespace for
// good, and be killed with it.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() { // runs elsewhere: the first thread is held here
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

func ip(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, "ip", argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// RemoveStale removes the name of a namespace that a crash left half made: a
// plain file that no namespace is mounted on.
func (n Namespace) RemoveStale() error {
	err := n.Do(func() error { return nil })
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.Remove(n.path())
}
