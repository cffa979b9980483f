// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/process"
)

func serials(disks []guest.Disk) []string {
	var s []string
	for _, disk := range disks {
		s = append(s, disk.Serial)
	}
	return s
}

func TestOrderDisks(t *testing.T) {
	t.Parallel()
	disks := []guest.Disk{{Serial: "ROOT", Class: guest.ClassRoot}, {Serial: "A"}, {Serial: "B"}, {Serial: "C"}}
	for order, want := range map[string]string{
		"":           "ROOT A B C",
		OrderReverse: "ROOT C B A",
		"B":          "ROOT B A C",
		"C,A":        "ROOT C A B",
	} {
		got, err := orderDisks(disks, order)
		if err != nil || strings.Join(serials(got), " ") != want {
			t.Errorf("order %q = %v, %v, want %s", order, serials(got), err, want)
		}
	}
	shuffled, err := orderDisks(disks, OrderShuffle)
	if err != nil || shuffled[0].Serial != "ROOT" || len(shuffled) != 4 {
		t.Errorf("shuffled = %v, %v", serials(shuffled), err)
	}
	for _, order := range []string{"X", "A,A", "ROOT"} {
		if _, err := orderDisks(disks, order); !errors.Is(err, ErrUnknownDisk) {
			t.Errorf("order %q: %v", order, err)
		}
	}
	if got := strings.Join(serials(disks), " "); got != "ROOT A B C" {
		t.Errorf("the disks given are now %s", got)
	}
}

func TestNewDisksAreAMachineThatQEMUTakes(t *testing.T) {
	t.Parallel()
	for n := 1; n <= MaxNodes; n++ {
		disks := newDisks(n, "/image")
		if _, err := (guest.Machine{Disks: disks}).Argv(); err != nil {
			t.Error(err)
		}
		seen := map[string]bool{}
		buses := map[guest.Bus]int{}
		classes := map[guest.Class]int{}
		for _, disk := range disks {
			if seen[disk.Serial] || seen[disk.Image] {
				t.Errorf("two disks %s", disk.Serial)
			}
			seen[disk.Serial], seen[disk.Image] = true, true
			buses[disk.Bus]++
			classes[disk.Class]++
		}
		if buses[guest.BusNVMe] != 1 || buses[guest.BusSCSI] != 1 || classes[guest.ClassData] != 6 || classes[guest.ClassForeign] != 5 {
			t.Errorf("buses %v, classes %v", buses, classes)
		}
	}
}

func TestParseNodes(t *testing.T) {
	t.Parallel()
	got, err := parseNodes([]byte(`{"items": [
		{"metadata": {"name": "node1"}, "status": {"nodeInfo": {"bootID": "b1"}, "conditions": [
			{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True", "message": "posting"}]}},
		{"metadata": {"name": "node2"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown", "message": "stopped"}]}},
		{"metadata": {"name": "node3"}}]}`))
	want := []NodeStatus{{"node1", true, "b1", "posting"}, {"node2", false, "", "stopped"}, {"node3", false, "", "its kubelet has not reported"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("nodes = %+v, %v", got, err)
	}
	if _, err := parseNodes([]byte("<html>")); err == nil {
		t.Error("read a list of nodes from nonsense")
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	for content, want := range map[string]string{
		"":                                "\n",
		"one":                             "one\n",
		"1\n2\n":                          "1\n2\n",
		"1\n2\n3\n":                       "2\n3\n",
		"1\n2\n3":                         "2\n3\n",
		"1\n\x1b[31mred\x1b[0m\n":         "1\nred\n",
		"\x1b[!p\x1b]104\x07\x1b[?7h1\n2": "1\n2\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := string(Tail(path, 2)); got != want {
			t.Errorf("tail of %q = %q, want %q", content, got, want)
		}
	}
	if got := Tail(filepath.Join(t.TempDir(), "none"), 2); got != nil {
		t.Errorf("tail of no log = %q", got)
	}
}

func TestNamespacesOfTwoFoldersDiffer(t *testing.T) {
	t.Parallel()
	a, b := (&Cluster{dir: "/a/.testbed"}).Namespace().Name, (&Cluster{dir: "/b/.testbed"}).Namespace().Name
	if a == b || !strings.HasPrefix(a, "berth-") {
		t.Errorf("namespaces %s and %s", a, b)
	}
}

func TestOpenWithoutATestbed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Open(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("open of an empty folder: %v", err)
	}
	c := &Cluster{dir: dir, state: state{Complete: false}}
	if err := errors.Join(os.MkdirAll(c.runDir(), 0o755), c.save()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("open of half a testbed: %v", err)
	}
	// Its network namespace went with a reboot.
	c.state.Complete = true
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("open after a reboot: %v", err)
	}
}

func TestUnknownNode(t *testing.T) {
	t.Parallel()
	c := &Cluster{dir: t.TempDir(), state: state{Nodes: []kube.Node{{Name: "node1", Number: 1}}}}
	for name, do := range map[string]func() error{
		"exec":    func() error { _, err := c.Exec(t.Context(), "node9", "true"); return err },
		"kill":    func() error { return c.Kill(t.Context(), "node9") },
		"start":   func() error { return c.Start(t.Context(), "node9", StartOptions{}) },
		"cut":     func() error { return c.CutNetwork(t.Context(), "node9") },
		"disks":   func() error { _, err := c.Disks("node9"); return err },
		"add":     func() error { return c.AddDisk(t.Context(), "node9", guest.Disk{}) },
		"remove":  func() error { return c.RemoveDisk(t.Context(), "node9", "X") },
		"copy":    func() error { return c.Copy(t.Context(), "cluster.go", "node9", "/x") },
		"load":    func() error { _, err := c.Load(t.Context(), "cluster.go", "node9"); return err },
		"powered": func() error { _, err := c.PoweredOn("node9"); return err },
	} {
		if err := do(); !errors.Is(err, ErrUnknownNode) || !strings.Contains(err.Error(), "node1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Down must clean up after a crash of Up at any point: with a process that has
// a pid file, one that was not yet written down, and a namespace with a tap.
func TestDownAfterACrash(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian package iproute2)")
	}
	dir := t.TempDir()
	c := &Cluster{dir: dir}
	t.Cleanup(func() { c.tearDown(context.Background()) })
	for _, sub := range []string{c.pidDir(), c.logDir(), c.nodeDir("node1"), filepath.Join(dir, "cache")} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Namespace().Create(t.Context(), "192.0.2.1/24"); err != nil {
		t.Fatal(err)
	}
	start := func(name, pidPath string) *process.Process {
		started, err := process.Start(process.Spec{Name: name, Argv: c.Namespace().Command("sleep", "60"), LogPath: c.logPath(name), PIDPath: pidPath})
		if err != nil {
			t.Fatal(err)
		}
		return started
	}
	component := start("etcd", c.pidPath("etcd"))
	machine := start("node1", filepath.Join(c.nodeDir("node1"), guest.PIDFile))
	unrecorded := start("lost", filepath.Join(dir, "lost.pid"))
	if err := os.Remove(filepath.Join(dir, "lost.pid")); err != nil {
		t.Fatal(err)
	}
	// A stale pid file: this test's process must live.
	if err := os.WriteFile(c.pidPath("stale"), []byte(`{"pid": 1, "startTicks": 1, "bootID": "x"}`), 0o644); err != nil {
		t.Fatal(err)
	}

	found, err := Down(t.Context(), dir)
	if err != nil || !found {
		t.Fatalf("down = %t, %v", found, err)
	}
	for name, started := range map[string]*process.Process{"component": component, "machine": machine, "unrecorded": unrecorded} {
		select {
		case <-started.Exited:
		case <-time.After(5 * time.Second):
			t.Errorf("%s still runs", name)
		}
	}
	if c.Namespace().Exists() {
		t.Error("the namespace is left")
	}
	if _, err := os.Stat(c.runDir()); !os.IsNotExist(err) {
		t.Error("the state is left")
	}
	for _, kept := range []string{"cache", "log"} {
		if _, err := os.Stat(filepath.Join(dir, kept)); err != nil {
			t.Error(err)
		}
	}
	if found, err := Down(t.Context(), dir); err != nil || found {
		t.Errorf("second down = %t, %v", found, err)
	}
}

func TestCommandsKeepEachOtherOut(t *testing.T) {
	t.Parallel()
	c := &Cluster{dir: t.TempDir()}
	unlock, err := c.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Down(t.Context(), c.dir); err == nil || !strings.Contains(err.Error(), "another command") {
		t.Errorf("down while another command runs: %v", err)
	}
	unlock()
	if _, err := Down(t.Context(), c.dir); err != nil {
		t.Error(err)
	}
}

func TestDefaultDir(t *testing.T) {
	if dir, err := DefaultDir(); err != nil || filepath.Base(dir) != ".testbed" {
		t.Errorf("in the repository: %s, %v", dir, err)
	}
	t.Setenv(DirVariable, "/tmp/x")
	if dir, err := DefaultDir(); err != nil || dir != "/tmp/x" {
		t.Errorf("by the variable: %s, %v", dir, err)
	}
	t.Setenv(DirVariable, "")
	t.Chdir(t.TempDir())
	if _, err := DefaultDir(); err == nil {
		t.Error("found a folder outside the repository")
	}
}

func TestKeepImageKnowsAnArchiveByItsContent(t *testing.T) {
	t.Parallel()
	u := &up{Cluster: &Cluster{dir: t.TempDir()}}
	archive := filepath.Join(t.TempDir(), "image.tar")
	keep := func(content string) string {
		if err := os.WriteFile(archive, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		kept, err := u.keepImage(archive)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(kept); err != nil || string(got) != content || filepath.Base(kept) != "image.tar" {
			t.Errorf("kept %s with %q, %v", kept, got, err)
		}
		return kept
	}
	first, second := keep("one"), keep("two")
	if first == second || keep("one") != first {
		t.Errorf("kept as %s and %s", first, second)
	}
	if _, err := u.keepImage(filepath.Join(t.TempDir(), "none.tar")); err == nil {
		t.Error("kept an archive that is not there")
	}
}

func TestStalled(t *testing.T) {
	t.Parallel()
	for console, want := range map[string]bool{
		"": false,
		"[    0.000000] Linux version 6.12\n[   12.3] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n":                            false,
		"[  129.03] rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g-1143 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x402\n": true,
	} {
		if got := stalled([]byte(console)); got != want {
			t.Errorf("%q: %v", console, got)
		}
	}
}
