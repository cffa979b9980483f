// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// node is a node with disks, its kernel's counters and its smartctl.
type node struct {
	mu       sync.Mutex
	targets  []discovery.HealthTarget
	set      map[string]discovery.Health
	counters map[string]block.Counters
	says     map[string]string // by path, a file of pkg/smart's testdata
	noTool   bool
	notReady bool
	// perAsk are the commands that asking itself fails.
	perAsk uint64
	asked  map[string]int
}

func newNode() *node {
	return &node{set: map[string]discovery.Health{}, counters: map[string]block.Counters{}, says: map[string]string{}, asked: map[string]int{}}
}

func (n *node) add(name, kernelName, says string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets = append(n.targets, discovery.HealthTarget{Name: name, KernelName: kernelName, Path: "/dev/" + kernelName, DiskSeq: uint64(len(n.targets) + 1)})
	n.says["/dev/"+kernelName] = says
}

// change sets a field while the monitor runs.
func (n *node) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) Ready() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.notReady
}

func (n *node) HealthTargets() []discovery.HealthTarget {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.targets)
}

func (n *node) SetHealth(name string, h discovery.Health) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set[name] = h
}

func (n *node) Counters(_ context.Context, kernelName string) (block.Counters, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, target := range n.targets {
		if target.KernelName == kernelName {
			c, ok := n.counters[kernelName]
			return c, ok, nil
		}
	}
	return block.Counters{}, false, volume.ErrNotFound
}

func (n *node) Run(_ context.Context, command hostexec.Command) (hostexec.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noTool {
		return hostexec.Result{}, fmt.Errorf("smartctl: %w", volume.ErrToolMissing)
	}
	path := command.Args[len(command.Args)-1]
	n.asked[path]++
	kernelName := strings.TrimPrefix(path, "/dev/")
	if c, ok := n.counters[kernelName]; ok {
		c.Errors += n.perAsk
		n.counters[kernelName] = c
	}
	out, err := os.ReadFile(filepath.Join("../../pkg/smart/testdata", n.says[path]+".json"))
	return hostexec.Result{Stdout: out}, err
}

func (n *node) monitor(t *testing.T, registerer prometheus.Registerer) *Monitor {
	t.Helper()
	m, err := New(Options{Disks: n, Counters: n, Runner: n, Interval: time.Hour, Log: testr.New(t), Registerer: registerer})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (n *node) expect(t *testing.T, name string, status metav1.ConditionStatus, reason, words string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	h, found := n.set[name]
	if !found || h.Status != status || h.Reason != reason || !strings.Contains(h.Message, words) {
		t.Errorf("%s: %+v, want %s %s with %q", name, h, status, reason, words)
	}
}

// expectAsked wants each disk to have been asked so often.
func (n *node) expectAsked(t *testing.T, times int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, target := range n.targets {
		if n.asked[target.Path] != times {
			t.Errorf("asked %v, want %d of each", n.asked, times)
		}
	}
}

func TestEachDiskIsAskedWhenItComesAndOncePerInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.add("bd-good", "nvme0n1", "nvme-good")
		n.notReady = true // the agent has just started, and nothing will be news
		changed := make(chan struct{}, 1)
		m := n.monitor(t, nil)
		m.opts.Changed = changed
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- m.Start(ctx) }()
		<-time.After(gather + time.Second)
		synctest.Wait()
		n.change(func() { n.notReady = false })
		<-time.After(gather + time.Second)
		synctest.Wait()
		n.expect(t, "bd-good", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")

		n.add("bd-new", "sdb", "scsi-failing")
		changed <- struct{}{}
		<-time.After(gather + time.Second)
		synctest.Wait()
		n.expect(t, "bd-new", metav1.ConditionFalse, v1alpha1.ReasonSelfFailing, "IMPENDING FAILURE")
		changed <- struct{}{} // no new disk
		<-time.After(30 * time.Minute)
		synctest.Wait()
		n.expectAsked(t, 1)
		<-time.After(time.Hour)
		synctest.Wait()
		n.expectAsked(t, 2)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestCommandsThatFail(t *testing.T) {
	t.Parallel()
	n := newNode()
	n.add("bd-a", "sda", "ata-good")
	n.perAsk = errorBurst // what asking fails is no sign of the disk
	n.counters["sda"] = block.Counters{Errors: 500}
	registry := prometheus.NewRegistry()
	m := n.monitor(t, registry)
	clock := time.Now()
	m.opts.Now = func() time.Time { return clock }
	look := func() {
		m.round(t.Context())
		clock = clock.Add(time.Hour)
	}
	look() // what was before us is not judged
	n.expect(t, "bd-a", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")
	look()
	n.expect(t, "bd-a", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")
	more := func(errors, timeouts uint64) {
		c := n.counters["sda"]
		n.counters["sda"] = block.Counters{Errors: c.Errors + errors, Timeouts: c.Timeouts + timeouts}
	}
	more(errorBurst-1, 0)
	look()
	n.expect(t, "bd-a", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")
	more(1, 1)
	look()
	n.expect(t, "bd-a", metav1.ConditionFalse, v1alpha1.ReasonIOErrors, "failed 1 commands and not answered 1")
	if got := testutil.ToFloat64(m.metrics.healthy.WithLabelValues("bd-a")); got != 0 {
		t.Errorf("berth_disk_healthy %v, want 0", got)
	}
	more(errorBurst, 0)
	look()
	n.expect(t, "bd-a", metav1.ConditionFalse, v1alpha1.ReasonIOErrors, "failed 20 commands")
	look() // and nothing since
	n.expect(t, "bd-a", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")

	n.counters["sda"] = block.Counters{Errors: 3} // the driver was loaded anew
	look()
	n.expect(t, "bd-a", metav1.ConditionTrue, v1alpha1.ReasonGood, "well")
	n.targets = nil
	look()
	if got, err := testutil.GatherAndCount(registry, "berth_disk_healthy", "berth_disk_command_errors", "berth_disk_temperature_celsius"); err != nil || got != 0 {
		t.Errorf("%d series of a disk that is gone, %v", got, err)
	}
}

func TestWhatCannotBeTold(t *testing.T) {
	t.Parallel()
	n := newNode()
	n.add("bd-silent", "sda", "scsi-silent")
	n.add("bd-none", "sdb", "virtio")
	n.add("bd-asleep", "sdc", "ata-asleep")
	m := n.monitor(t, nil)
	m.round(t.Context())
	n.expect(t, "bd-silent", metav1.ConditionUnknown, v1alpha1.ReasonNotTold, "tells nothing")
	n.expect(t, "bd-none", metav1.ConditionUnknown, v1alpha1.ReasonNotTold, "no SMART")
	if h, set := n.set["bd-asleep"]; set {
		t.Errorf("of a disk that sleeps nothing is news: %+v", h)
	}
	n.noTool, m.known = true, map[string]*known{}
	m.round(t.Context())
	n.expect(t, "bd-asleep", metav1.ConditionUnknown, v1alpha1.ReasonNotTold, "smartmontools")
}
