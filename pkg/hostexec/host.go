// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Options configure a Host.
type Options struct {
	// HostRoot says where the host is. Empty means that this process runs on the
	// host itself: nothing is entered. "/proc/1/root" means the namespaces of the
	// host's first process; the agent's pod then needs hostPID and privileged. Any
	// other "/proc/PID/root" is taken alike, which is what the tests use.
	HostRoot string
	// Observer is told of every command that ran; nil tells nobody.
	Observer Observer
}

// Observer is told of every command that was started, for metrics.
type Observer interface {
	// CommandDone is called once per command, with the program's name, how long it
	// ran, and whether it exited with 0.
	CommandDone(binary string, duration time.Duration, ok bool)
}

// Host runs programs and functions on the host. It is safe for concurrent use.
type Host struct {
	root     string
	observer Observer
	// namespaces in the order they are entered; the mount namespace is last,
	// because entering it takes away our own /proc. Empty: nothing is entered.
	namespaces []namespace

	termGrace, killGrace time.Duration
}

// namespace is an open /proc/PID/ns/NAME.
type namespace struct {
	name string
	flag int
	file *os.File
}

// entered are the namespaces a host command needs. Besides the mount namespace:
// ipc, because lvm waits for udev on a System V semaphore; uts, because lvm
// compares and records the host's name; net, because udev's events arrive there.
var entered = []struct {
	name string
	flag int
}{
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"net", unix.CLONE_NEWNET},
	{"mnt", unix.CLONE_NEWNS},
}

var procRoot = regexp.MustCompile(`^/proc/([1-9][0-9]*)/root$`)

// New opens the host's namespaces. It fails when they cannot be opened, or when
// HostRoot names this process itself, which is what a pod without hostPID sees.
// Close gives the descriptors back.
func New(opts Options) (*Host, error) {
	h := &Host{
		root: opts.HostRoot, observer: opts.Observer,
		termGrace: defaultTermGrace, killGrace: defaultKillGrace,
	}
	if opts.HostRoot == "" {
		return h, nil
	}
	h.root = filepath.Clean(opts.HostRoot)
	m := procRoot.FindStringSubmatch(h.root)
	if m == nil {
		return nil, fmt.Errorf("host root %q: must be empty or /proc/PID/root", opts.HostRoot)
	}
	if m[1] == fmt.Sprint(os.Getpid()) {
		return nil, fmt.Errorf("host root %q is this process itself: the pod needs hostPID: true", opts.HostRoot)
	}
	for _, e := range entered {
		f, err := os.Open(filepath.Join(filepath.Dir(h.root), "ns", e.name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the host's %s namespace: %w", e.name, err), h.Close())
		}
		h.namespaces = append(h.namespaces, namespace{name: e.name, flag: e.flag, file: f})
	}
	return h, nil
}

// Close closes the descriptors of the host's namespaces. No command may run then.
func (h *Host) Close() error {
	var errs []error
	for _, ns := range h.namespaces {
		errs = append(errs, ns.file.Close())
	}
	h.namespaces = nil
	return errors.Join(errs...)
}

// Root is the directory under which this process sees the host's files: "/", or
// "/proc/1/root". Absolute symbolic links under it lead into our own root, so it
// serves for /sys, /proc and /dev; what must follow links goes through
// InMountNamespace.
func (h *Host) Root() string {
	if h.root == "" {
		return "/"
	}
	return h.root
}
