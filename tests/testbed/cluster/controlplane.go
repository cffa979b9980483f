// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/process"
)

// componentLimit bounds how long a component may take to be healthy, beside
// booting nodes.
const componentLimit = 3 * time.Minute

// controlPlaneGrace is how long a component may take to end by itself when it is to be
// started again: etcd closes its files.
const controlPlaneGrace = 20 * time.Second

// ErrUnknownSave means that etcd's state was never saved under that name.
var ErrUnknownSave = errors.New("no such saved state")

// StopControlPlane ends etcd, the API server and the controllers; the nodes run on. It
// may be repeated.
func (c *Cluster) StopControlPlane(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.stopComponents(ctx)
}

func (c *Cluster) stopComponents(ctx context.Context) error {
	names := c.componentNames()
	slices.Reverse(names)
	for _, name := range names {
		if err := process.Stop(ctx, c.pidPath(name), controlPlaneGrace); err != nil {
			return err
		}
	}
	return nil
}

// StartControlPlane starts what does not run of the control plane, and returns when all of
// it is healthy. It may be repeated.
func (c *Cluster) StartControlPlane(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.startComponents(ctx)
}

func (c *Cluster) startComponents(ctx context.Context) error {
	for _, component := range c.components() {
		if running, err := process.Find(c.pidPath(component.Name)); err != nil {
			return err
		} else if running != nil {
			continue
		}
		if err := c.startComponent(ctx, component); err != nil {
			return err
		}
	}
	return nil
}

// SaveEtcd keeps a copy of etcd's state under a name, as long as this testbed lasts; one of
// that name is replaced. The control plane is away meanwhile, for seconds.
func (c *Cluster) SaveEtcd(ctx context.Context, name string) error {
	saved, err := c.savedEtcd(name)
	if err != nil {
		return err
	}
	return c.withoutControlPlane(ctx, func() error {
		if err := os.RemoveAll(saved); err != nil {
			return err
		}
		return os.CopyFS(saved, os.DirFS(c.etcdDir()))
	})
}

// RestoreEtcd puts etcd back to a saved state, as an operator does who has lost what was
// written since. The nodes are not told. ErrUnknownSave: there is none of that name, and
// nothing was changed.
func (c *Cluster) RestoreEtcd(ctx context.Context, name string) error {
	saved, err := c.savedEtcd(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(saved); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrUnknownSave)
	} else if err != nil {
		return err
	}
	return c.withoutControlPlane(ctx, func() error {
		if err := os.RemoveAll(c.etcdDir()); err != nil {
			return err
		}
		if err := os.CopyFS(c.etcdDir(), os.DirFS(saved)); err != nil {
			return err
		}
		return os.Chmod(c.etcdDir(), 0o700) // etcd asks for it
	})
}

// withoutControlPlane does something while the control plane is stopped, and starts it
// again whatever came of it.
func (c *Cluster) withoutControlPlane(ctx context.Context, do func() error) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.stopComponents(ctx); err != nil {
		return err
	}
	return errors.Join(do(), c.startComponents(ctx))
}

var savePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (c *Cluster) savedEtcd(name string) (string, error) {
	if !savePattern.MatchString(name) {
		return "", fmt.Errorf("name %q of a saved state: want small letters, digits and dashes", name)
	}
	return filepath.Join(c.runDir(), "saved", name), nil
}

func (c *Cluster) etcdDir() string { return kube.EtcdDir(c.runDir()) }

// startComponent starts a component and waits until it is healthy.
func (c *Cluster) startComponent(ctx context.Context, component kube.Component) error {
	log := c.logPath(component.Name)
	started, err := process.Start(process.Spec{
		Name: component.Name, Argv: c.Namespace().Command(component.Argv...), Dir: c.runDir(), Favour: true, LogPath: log, PIDPath: c.pidPath(component.Name),
	})
	if err != nil {
		return err
	}
	client, err := c.httpClient()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	return withLog(awaitHealthy(ctx, component, started, client), log)
}

func awaitHealthy(ctx context.Context, component kube.Component, started *process.Process, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, componentLimit)
	defer cancel()
	for {
		_, err := get(ctx, client, component.HealthURL)
		if err == nil {
			return nil
		}
		select {
		case <-started.Exited:
			return fmt.Errorf("%s ended at once", component.Name)
		case <-ctx.Done():
			return fmt.Errorf("%s is not healthy: %w", component.Name, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// controlPlaneRuns tells whether every component runs.
func (c *Cluster) controlPlaneRuns() bool {
	for _, name := range c.componentNames() {
		if running, err := process.Find(c.pidPath(name)); err != nil || running == nil {
			return false
		}
	}
	return true
}

// componentNames are the names of the control plane's parts.
func (c *Cluster) componentNames() []string {
	var names []string
	for _, component := range c.components() {
		names = append(names, component.Name)
	}
	return names
}

// components are the control plane's parts in the order in which they are started.
func (c *Cluster) components() []kube.Component {
	return append(kube.Components(c.state.Programs, c.files(), c.runDir()), kube.SnapshotController(c.state.Programs, c.files()))
}
