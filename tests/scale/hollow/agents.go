// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hollow runs the agents of many nodes in one process: the wiring of the real
// command, each with a client, a cache and credentials of its own, over hosts that are trees
// of files.
package hollow

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/nodeagent"
	"github.com/berth-dev/berth/pkg/lvm"
)

// gcPercent is that of cmd/node-agent.
const gcPercent = 40

// Node is one hollow node.
type Node struct {
	Name string `json:"name"`
	// Pod is the agent's, which the token is bound to.
	Pod   string `json:"pod"`
	Token string `json:"token"`
}

// Spec is what the process is to run.
type Spec struct {
	// Dir is where the trees are made; each node has a directory there.
	Dir       string `json:"dir"`
	Server    string `json:"server"`
	CA        []byte `json:"ca"`
	Namespace string `json:"namespace"`
	// StartEvery is the time between the starts of two agents.
	StartEvery time.Duration `json:"startEvery"`
	// Follows is how many resources an agent follows.
	Follows int    `json:"follows"`
	Nodes   []Node `json:"nodes"`
}

// Report is how the process and its agents are.
type Report struct {
	Traffic Traffic `json:"traffic"`
	// Ready are the agents whose /readyz would say so. Synced are those whose watches all
	// stand and are up to date, and SyncedAt is when the last of these came to be.
	Ready    int       `json:"ready"`
	Synced   int       `json:"synced"`
	SyncedAt time.Time `json:"syncedAt"`
	// BaseKiB was resident before the first agent, ResidentKiB is now.
	BaseKiB     int `json:"baseKiB"`
	ResidentKiB int `json:"residentKiB"`
	// Failed says why an agent has ended.
	Failed string `json:"failed,omitempty"`
}

// Command is the first argument that makes the program this process.
const Command = "hollow-agents"

// Run is the process. It reads a Spec from the first line of in, and answers each further
// line with a Report: "trim" gives memory back before. It ends with in.
func Run(in io.Reader, out, errs io.Writer) error {
	debug.SetGCPercent(gcPercent)
	lines := bufio.NewReader(in)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	var spec Spec
	if err := json.Unmarshal(line, &spec); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	log := slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetLogger(logr.FromSlogHandler(log.Handler()))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := &agents{spec: spec, log: log, meter: newMeter()}
	debug.FreeOSMemory()
	if p.baseKiB, err = ResidentKiB(os.Getpid()); err != nil {
		return err
	}
	go p.start(ctx)
	encoder := json.NewEncoder(out)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // the processes' end takes all the agents with it
		}
		if err != nil {
			return err
		}
		if bytes.Equal(bytes.TrimSpace(line), []byte("trim")) {
			debug.FreeOSMemory()
		}
		if err := encoder.Encode(p.report()); err != nil {
			return err
		}
	}
}

type agents struct {
	spec    Spec
	log     *slog.Logger
	meter   *meter
	baseKiB int

	mu     sync.Mutex
	all    []*one
	failed error
}

type one struct {
	agent *nodeagent.Agent
	wire  *wire
}

func (p *agents) start(ctx context.Context) {
	tick := time.NewTicker(max(p.spec.StartEvery, time.Microsecond))
	defer tick.Stop()
	for _, n := range p.spec.Nodes {
		go func() {
			if err := p.run(ctx, n); err != nil {
				p.mu.Lock()
				p.failed = fmt.Errorf("the agent of %s: %w", n.Name, err)
				p.mu.Unlock()
			}
		}()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// run runs the agent of one node, which ends with the process.
func (p *agents) run(ctx context.Context, n Node) error {
	h, err := newHost(filepath.Join(p.spec.Dir, n.Name))
	if err != nil {
		return fmt.Errorf("make the host: %w", err)
	}
	const stateDir = "/var/lib/berth"
	book, err := ledger.Open(h.path(stateDir + "/ledger"))
	if err != nil {
		return err
	}
	config := &rest.Config{
		Host: p.spec.Server, BearerToken: n.Token, TLSClientConfig: rest.TLSClientConfig{CAData: p.spec.CA},
		UserAgent: "berth-node-agent/hollow",
		QPS:       -1, // as the configuration of the real one is read
	}
	w := &wire{meter: p.meter, synced: map[string]int{}, instance: "berth-node-agent-" + n.Pod}
	w.attach(config)
	// The agent's own context ends only when Serve has returned.
	a, err := nodeagent.New(ctx, nodeagent.Options{
		Config: config, NodeName: n.Name, Namespace: p.spec.Namespace, MachineID: h.machineID(),
		Host: h, HostRoot: h.root, StateDir: h.path(stateDir), HostStateDir: stateDir, Ledger: book,
		CSISocket: h.path("csi.sock"), Endpoint: h.path("csi.sock"), RegistrationDir: h.path("plugins"),
		WipeParallelism: 2, TrashEntriesPerSecond: 1000,
		Instants: noInstants{}, PodEvents: noPods{}, Registerer: prometheus.NewRegistry(), SharedProcess: true,
		Log: p.log.With("node", n.Name),
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.all = append(p.all, &one{a, w})
	p.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.Serve(ctx) })
	group.Go(func() error { return Register(ctx, h.path("plugins/berth.dev-reg.sock")) })
	return group.Wait()
}

func (p *agents) report() Report {
	r := Report{Traffic: p.meter.read(), BaseKiB: p.baseKiB}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.all {
		if a.agent.Ready() == nil {
			r.Ready++
		}
		if since, synced := a.wire.inSync(p.spec.Follows); synced {
			r.Synced++
			if since.After(r.SyncedAt) {
				r.SyncedAt = since
			}
		}
	}
	var err error
	if r.ResidentKiB, err = ResidentKiB(os.Getpid()); err == nil {
		err = p.failed
	}
	if err != nil {
		r.Failed = err.Error()
	}
	return r
}

// noPods: no pod ever runs on a hollow node.
type noPods struct{}

// Follow implements nodeagent.PodEvents.
func (noPods) Follow(string) error { return nil }

// Run implements nodeagent.PodEvents.
func (noPods) Run(ctx context.Context, _ func(string)) error {
	<-ctx.Done()
	return nil
}

type noInstants struct{}

// Take implements lvm.Instants.
func (noInstants) Take(context.Context, lvm.Instant) error { return errors.ErrUnsupported }

// RaiseFiles lets the process have as many open files as it may.
func RaiseFiles() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// ResidentKiB is the resident memory of a process (VmRSS of proc_pid_status(5)).
func ResidentKiB(pid int) (int, error) { return StatusKiB(pid, "VmRSS") }

// StatusKiB is a field of /proc/PID/status that is in kB.
func StatusKiB(pid int, field string) (int, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(content) {
		if value, ok := bytes.CutPrefix(line, []byte(field+":")); ok {
			return strconv.Atoi(string(bytes.Fields(value)[0]))
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, field)
}
