// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Everything stands for all pods, where a Watch cannot tell which one.
const Everything = ""

// Watch tells when groups of pods are made, and groups of containers in the pods that it
// is to follow. It waits for events of the kernel (inotify(7), which cgroup2 has for
// directories) and polls nothing. It is safe for concurrent use.
type Watch struct {
	root    string
	pods    *Pods
	inotify *os.File

	mu sync.Mutex
	// parents and followed are what the watches are for, by their descriptors: groups
	// that pods are right below, and the UIDs of pods.
	parents  map[int32]string
	followed map[int32]string
}

// OpenWatch watches the hierarchy that is mounted at a directory. What kubelet has not
// made yet is looked for again by Run.
func OpenWatch(root string) (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the cgroups of pods: %w", err)
	}
	w := &Watch{
		root: root, pods: NewPods(Mounted{Root: root}), inotify: os.NewFile(uintptr(fd), "cgroups of pods"),
		parents: map[int32]string{}, followed: map[int32]string{},
	}
	if err := w.watchParents(); err != nil {
		return nil, errors.Join(err, w.inotify.Close())
	}
	return w, nil
}

// Follow tells of the containers of a pod too, until its group is gone. A repeated call
// does nothing more, and for a pod without a group none does anything.
func (w *Watch) Follow(uid string) error {
	group, err := w.pods.Find(uid)
	if err == nil {
		err = w.add(group, w.followed, uid)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, volume.ErrNotFound) {
		return fmt.Errorf("follow pod %s: %w", uid, err)
	}
	return nil
}

// add watches for groups that are made right below one.
func (w *Watch) add(group string, to map[int32]string, what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	var wd int
	var addErr error
	err = conn.Control(func(fd uintptr) {
		wd, addErr = unix.InotifyAddWatch(int(fd), filepath.Join(w.root, group), unix.IN_CREATE|unix.IN_ONLYDIR)
	})
	if err := errors.Join(err, addErr); err != nil {
		return err
	}
	to[int32(wd)] = what
	return nil
}

// watchParents watches the groups that pods are right below.
func (w *Watch) watchParents() error {
	parents, err := w.pods.parents()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no cgroup v2, or a group that goes at this moment
	}
	if err != nil {
		return err
	}
	for _, parent := range parents {
		if err := w.add(parent, w.parents, parent); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch the cgroup %s: %w", parent, err)
		}
	}
	return nil
}

// Run calls tell with the UID of a pod whose group, or one of whose containers' groups,
// was made, or with Everything when any may have been, until the context ends. tell is
// called by one goroutine. Run may be called once, and closes the watch.
func (w *Watch) Run(ctx context.Context, tell func(uid string)) error {
	stop := context.AfterFunc(ctx, func() { _ = w.inotify.Close() })
	defer func() {
		if stop() {
			_ = w.inotify.Close()
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.inotify.Read(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch the cgroups of pods: %w", err)
		}
		events, lost := block.ParseInotify(buffer[:max(n, 0)])
		for _, event := range events {
			uid, tells, unsure := w.judge(event)
			lost = lost || unsure
			if tells {
				tell(uid)
			}
		}
		if lost {
			if err := w.watchParents(); err != nil {
				return err
			}
			tell(Everything)
		}
	}
}

// judge returns the pod that an event tells of. unsure: what is watched must be looked at
// again.
func (w *Watch) judge(event block.InotifyEvent) (uid string, tells, unsure bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	parent, isParent := w.parents[event.Watch]
	if event.Mask&unix.IN_IGNORED != 0 { // the group is gone, and its watch with it
		delete(w.parents, event.Watch)
		delete(w.followed, event.Watch)
		return "", false, isParent
	}
	if event.Mask&unix.IN_ISDIR == 0 {
		return "", false, false
	}
	if isParent {
		if uid, tells = podOf(parent, event.Name); tells {
			return uid, true, false
		}
		return "", false, classOf(parent, event.Name)
	}
	uid, tells = w.followed[event.Watch]
	return uid, tells, false
}
