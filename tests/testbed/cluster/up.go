// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/progress"
)

// MaxNodes is how many nodes the addresses are laid out for.
const MaxNodes = 9

// UpOptions say what testbed to start.
type UpOptions struct {
	// Dir is its folder. Empty means DefaultDir.
	Dir string
	// Nodes is how many nodes it has, 1 to MaxNodes. Zero means 3.
	Nodes int
	// CPUs is each node's number of processors. Zero means 2, or 1 where this
	// machine has fewer than all nodes together would have: emulated processors
	// that wait for each other are slower than half as many.
	CPUs int
	// MemoryMiB is each node's. Zero means 3072.
	MemoryMiB int
	// Images are archives of container images that every node has from the
	// start, beside the usual ones. They are imported when the nodes' disk is
	// made, which takes seconds; Load takes minutes under emulation.
	Images []string
	// ReadyLimit bounds how long the nodes may take to be Ready. Zero means
	// 10 minutes.
	ReadyLimit time.Duration
	// Out takes the progress. Nil means nowhere.
	Out io.Writer
}

func (o *UpOptions) complete() error {
	if o.Dir == "" {
		var err error
		if o.Dir, err = DefaultDir(); err != nil {
			return err
		}
	}
	for value, fallback := range map[*int]int{&o.Nodes: 3, &o.MemoryMiB: 3072} {
		if *value == 0 {
			*value = fallback
		}
	}
	if o.CPUs == 0 {
		o.CPUs = 2
		if runtime.NumCPU() < o.CPUs*o.Nodes {
			o.CPUs = 1
		}
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, MaxNodes)
	}
	if o.ReadyLimit == 0 {
		o.ReadyLimit = 10 * time.Minute
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	return nil
}

// Up builds what is missing and starts a testbed, and returns when its nodes
// are Ready. If one runs in the folder already, Up changes nothing, says so and
// returns it. If it fails, nothing that it started is left, and the error may be
// a *LogError.
func Up(ctx context.Context, options UpOptions) (*Cluster, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{dir: options.Dir}
	unlock, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if running, err := Open(options.Dir); err == nil && running.controlPlaneRuns() {
		return running, running.sayRunning(options)
	} else if err != nil && !errors.Is(err, ErrNotRunning) {
		return nil, err
	}
	if err := CheckHost(); err != nil {
		return nil, err
	}
	// What a crash left, or a reboot.
	if err := c.tearDown(ctx); err != nil {
		return nil, fmt.Errorf("remove what is left of an earlier testbed: %w", err)
	}
	repository, err := findRepository()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	u := &up{Cluster: c, options: options, repository: repository, printer: progress.New(options.Out, len(kube.Programs)+12)}
	if err := u.run(ctx); err != nil {
		explain(options.Out, err)
		fmt.Fprintln(options.Out, "Removing what was started.")
		return nil, errors.Join(err, c.tearDown(context.WithoutCancel(ctx)))
	}
	fmt.Fprintf(options.Out, "The testbed is up after %s: %d nodes, Kubernetes %s (%s).\n", time.Since(started).Round(time.Second), options.Nodes, kube.Version, c.state.Accel)
	return c, nil
}

// explain shows the end of the log that explains an error; the log may go with
// the testbed.
func explain(out io.Writer, err error) {
	if logged, ok := errors.AsType[*LogError](err); ok {
		fmt.Fprintf(out, "--- the end of %s:\n%s---\n", logged.Log, Tail(logged.Log, 25))
	}
}

// sayRunning says that nothing needs to be done, and what is not as Up left it.
func (c *Cluster) sayRunning(options UpOptions) error {
	if len(c.state.Nodes) != options.Nodes {
		return fmt.Errorf("a testbed with %d nodes runs here: 'testbed down' first for one with %d", len(c.state.Nodes), options.Nodes)
	}
	fmt.Fprintf(options.Out, "The testbed has been running since %s (%d nodes): nothing to do.\n", c.state.CreatedAt.Format(time.DateTime), len(c.state.Nodes))
	for _, node := range c.Nodes() {
		if on, err := c.PoweredOn(node); err == nil && !on {
			fmt.Fprintf(options.Out, "%s is powered off: 'testbed node start %s' starts it.\n", node, node)
		}
	}
	return nil
}

// up is one run of Up.
type up struct {
	*Cluster
	options    UpOptions
	repository string
	printer    *progress.Printer
}

func (u *up) run(ctx context.Context) error {
	for _, dir := range []string{u.pidDir(), u.logDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	u.state = state{CreatedAt: time.Now(), Programs: map[string]string{}}
	for n := 1; n <= u.options.Nodes; n++ {
		u.state.Nodes = append(u.state.Nodes, kube.Node{Name: fmt.Sprintf("node%d", n), Number: n})
	}
	if err := u.save(); err != nil {
		return err
	}
	if err := u.build(ctx); err != nil {
		return err
	}
	if err := u.step("make certificates", "", func(*progress.Step) error { return u.files().Write(u.state.Nodes) }); err != nil {
		return err
	}
	if err := u.step("make the network", "", func(*progress.Step) error { return u.makeNetwork(ctx) }); err != nil {
		return err
	}
	if err := u.save(); err != nil {
		return err
	}
	if err := u.step("start the nodes' machines", "", func(*progress.Step) error { return u.startNodes(ctx) }); err != nil {
		return err
	}
	if err := u.step("start the control plane", "", func(s *progress.Step) error { return u.startControlPlane(ctx, s) }); err != nil {
		return err
	}
	if err := u.step("wait for the nodes", "", func(s *progress.Step) error {
		ctx, cancel := context.WithTimeout(ctx, u.options.ReadyLimit)
		defer cancel()
		return u.waitReady(ctx, nil, func(waiting []string) {
			if len(waiting) == 0 {
				s.Detail("all Ready, %s", u.state.Accel)
			} else {
				s.Detail("%s not yet Ready, %s", strings.Join(waiting, ", "), u.state.Accel)
			}
		})
	}); err != nil {
		return err
	}
	u.state.Complete = true
	if err := u.save(); err != nil {
		return err
	}
	return u.store().Prune()
}

// step shows a step. A log named explains its failure.
func (u *up) step(name, log string, do func(*progress.Step) error) error {
	return u.printer.Run(name, func(s *progress.Step) error {
		if err := do(s); err != nil {
			if log != "" {
				return withLog(err, u.logPath(log))
			}
			return err
		}
		return nil
	})
}

// makeNetwork makes the namespace, and routes to the pods so that the API
// server reaches webhooks.
func (u *up) makeNetwork(ctx context.Context) error {
	if err := u.Namespace().Create(ctx, kube.ServerAddress+"/24"); err != nil {
		return err
	}
	for _, node := range u.state.Nodes {
		if err := u.Namespace().AddTap(ctx, tapName(node.Number)); err != nil {
			return err
		}
		if err := u.Namespace().AddRoute(ctx, kube.NodePodNetwork(node.Number), kube.NodeAddress(node.Number)); err != nil {
			return err
		}
	}
	return nil
}

func (u *up) startNodes(ctx context.Context) error {
	var archives []string
	for _, image := range u.options.Images {
		sum, err := digest(image)
		if err != nil {
			return err
		}
		archives = append(archives, sum)
	}
	for _, node := range u.state.Nodes {
		if err := u.createNode(ctx, node, u.options.CPUs, u.options.MemoryMiB, archives); err != nil {
			return err
		}
		if err := u.Start(ctx, node.Name, StartOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func (u *up) startControlPlane(ctx context.Context, s *progress.Step) error {
	components := kube.Components(u.state.Programs, u.files(), u.runDir())
	for _, component := range components {
		s.Detail("%s", component.Name)
		if err := u.startComponent(ctx, component); err != nil {
			return err
		}
	}
	s.Detail("roles and CRDs")
	manifests := []string{"---", string(kube.Bootstrap)}
	crds, err := filepath.Glob(filepath.Join(u.store().Path(kube.CRDsKey()), "*.yaml"))
	if err != nil {
		return err
	}
	for _, crd := range crds {
		content, err := os.ReadFile(crd)
		if err != nil {
			return err
		}
		manifests = append(manifests, "---", string(content))
	}
	if _, err := u.Kubectl(ctx, []byte(strings.Join(manifests, "\n")), "apply", "--server-side", "--filename=-"); err != nil {
		return withLog(err, u.logPath("kube-apiserver"))
	}
	s.Detail("snapshot-controller")
	if err := u.startComponent(ctx, kube.SnapshotController(u.state.Programs, u.files())); err != nil {
		return err
	}
	s.Detail("healthy")
	return nil
}
