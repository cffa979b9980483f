// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// InMountNamespace runs f on a thread of its own in the host's mount namespace,
// with the host's root as root and working directory, and returns what f returns.
// With an empty HostRoot f runs where it is called.
//
// f must do its system calls itself: a goroutine it starts runs elsewhere. Files
// it opens stay good after it has returned. A context that is done already keeps
// f from starting; once f runs it is waited for, because the caller's lock must
// stand for as long as a mount is under way in the kernel.
func (h *Host) InMountNamespace(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(h.namespaces) == 0 {
		return f()
	}
	return onThread(func() error {
		if err := enter(h.namespaces[len(h.namespaces)-1:]); err != nil {
			return err
		}
		return f()
	})
}

// inAllNamespaces runs f on a thread of its own in all of the host's namespaces.
func (h *Host) inAllNamespaces(f func() error) error {
	if len(h.namespaces) == 0 {
		return f()
	}
	return onThread(func() error {
		if err := enter(h.namespaces); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread, and only it. The thread cannot come back.
func enter(namespaces []namespace) error {
	// setns(2) refuses a mount namespace to a thread that shares its root and
	// working directory with others, as all threads of a Go process do.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the thread's root directory: %w", err)
	}
	for _, ns := range namespaces {
		if err := unix.Setns(int(ns.file.Fd()), ns.flag); err != nil {
			return fmt.Errorf("enter the host's %s namespace: %w", ns.name, err)
		}
	}
	return nil
}

// onThread runs f on a thread that dies afterwards, and waits for it. A panic of f
// is raised again in the caller, so that it does not end the process past every
// recover.
//
// The thread dies because the goroutine ends while locked to it
// (runtime.LockOSThread); the Go runtime starts no thread as a copy of a locked
// one, so nothing inherits its namespaces but the child processes f starts. The
// thread-group leader is never used: it cannot be ended alone, and /proc/self
// shows its namespaces for the whole process.
func onThread(f func() error) error {
	type outcome struct {
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	work := func() {
		var out outcome
		defer func() {
			out.panicked = recover()
			done <- out
		}()
		out.err = f()
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			work()
			return // locked: the thread ends with the goroutine
		}
		// While this goroutine holds the leader, the next one runs elsewhere.
		next := make(chan struct{})
		go func() {
			defer close(next)
			runtime.LockOSThread()
			work()
		}()
		<-next
		runtime.UnlockOSThread()
	}()
	out := <-done
	if out.panicked != nil {
		panic(out.panicked)
	}
	return out.err
}
