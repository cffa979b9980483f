// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/tests/testbed/process"
)

// Down ends the testbed in the folder (DefaultDir if empty) and removes all of
// it but the cache and the logs: processes, network, disks and state. It needs
// no complete testbed, and none at all is no error; it tells whether there was
// anything.
func Down(ctx context.Context, dir string) (found bool, err error) {
	if dir == "" {
		if dir, err = DefaultDir(); err != nil {
			return false, err
		}
	}
	c := &Cluster{dir: dir}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for a testbed: %w", err)
	}
	unlock, err := c.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	_, err = os.Stat(c.runDir())
	return err == nil || c.Namespace().Exists(), c.tearDown(ctx)
}

// stopGrace is how long a component may take to end by itself. Nothing of it is
// kept, so it is short.
const stopGrace = 3 * time.Second

// tearDown removes everything of a testbed that may be there, in whatever state
// a crash left it.
func (c *Cluster) tearDown(ctx context.Context) error {
	pidFiles, err := filepath.Glob(filepath.Join(c.pidDir(), "*.pid"))
	if err != nil {
		return err
	}
	machines, err := filepath.Glob(filepath.Join(c.runDir(), "nodes", "*", "qemu.pid"))
	if err != nil {
		return err
	}
	var failed []error
	for _, machine := range machines {
		failed = append(failed, process.Stop(ctx, machine, 0))
	}
	for _, pidFile := range pidFiles {
		failed = append(failed, process.Stop(ctx, pidFile, stopGrace))
	}
	// What was started and not yet written down when Up was killed, and what
	// 'testbed run' runs: the namespace is the testbed's alone.
	failed = append(failed, c.endNamespace(ctx))
	if err := errors.Join(failed...); err != nil {
		return err // keep the pid files
	}
	return os.RemoveAll(c.runDir())
}

func (c *Cluster) endNamespace(ctx context.Context) error {
	namespace := c.Namespace()
	if err := namespace.RemoveStale(); err != nil {
		return err
	}
	tick := time.Tick(50 * time.Millisecond)
	for deadline := time.Now().Add(10 * time.Second); ; <-tick {
		pids, err := namespace.PIDs(ctx)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return namespace.Delete(ctx)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in network namespace %s do not end", pids, namespace.Name)
		}
		for _, pid := range pids {
			if running, err := os.FindProcess(pid); err == nil {
				running.Kill()
			}
		}
	}
}
