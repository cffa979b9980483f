// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, argv ...string) (*Process, Spec) {
	t.Helper()
	dir := t.TempDir()
	spec := Spec{Name: argv[0], Argv: argv, LogPath: filepath.Join(dir, "log"), PIDPath: filepath.Join(dir, argv[0]+".pid")}
	running, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Stop(context.Background(), spec.PIDPath, 0) })
	return running, spec
}

func TestStartFindStop(t *testing.T) {
	t.Parallel()
	running, spec := start(t, "sleep", "60")
	if found, err := Find(spec.PIDPath); err != nil || found == nil || found.Identity != running.Identity {
		t.Fatalf("find = %v, %v, want %v", found, err, running.Identity)
	}
	if _, err := Start(spec); err == nil {
		t.Error("started twice")
	}
	if running.ResidentBytes() <= 0 {
		t.Error("a running process without memory")
	}
	if err := Stop(t.Context(), spec.PIDPath, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	<-running.Exited
	if running.Alive() {
		t.Error("alive after stop")
	}
	if _, err := os.Stat(spec.PIDPath); !os.IsNotExist(err) {
		t.Errorf("pid file after stop: %v", err)
	}
	if err := Stop(t.Context(), spec.PIDPath, 5*time.Second); err != nil {
		t.Errorf("second stop: %v", err)
	}
}

func TestStopKillsWhatIgnoresSIGTERM(t *testing.T) {
	t.Parallel()
	running, spec := start(t, "sh", "-c", `trap "" TERM; echo ready; while :; do sleep 0.05; done`)
	tick := time.Tick(5 * time.Millisecond)
	for deadline := time.Now().Add(5 * time.Second); ; <-tick {
		if log, _ := os.ReadFile(spec.LogPath); strings.Contains(string(log), "ready") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell did not start")
		}
	}
	if err := Stop(t.Context(), spec.PIDPath, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if running.Alive() {
		t.Error("alive after SIGKILL")
	}
}

// A pid file that a crash left may name a pid which now belongs to somebody
// else: this test's own process stands for that one.
func TestStopSparesARecycledPID(t *testing.T) {
	t.Parallel()
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Identity){
		"started at another time": func(i *Identity) { i.StartTicks++ },
		"before a reboot":         func(i *Identity) { i.BootID = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			stale := self
			change(&stale)
			path := filepath.Join(t.TempDir(), "x.pid")
			content, _ := json.Marshal(stale)
			os.WriteFile(path, content, 0o644)
			if found, err := Find(path); err != nil || found != nil {
				t.Errorf("find = %v, %v", found, err)
			}
			if err := stale.signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			if err := Stop(t.Context(), path, 0); err != nil { // we live on
				t.Error(err)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Error("the stale pid file was left")
			}
		})
	}
}

func TestFindTakesATornPIDFileForNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.pid")
	os.WriteFile(path, []byte(`{"pid":1`), 0o644)
	if found, err := Find(path); err != nil || found != nil {
		t.Errorf("find = %v, %v", found, err)
	}
}

// leaderEnds names what a process of this test does: its first thread ends and another
// one lives on, as it is for a moment when a process with threads is killed.
const leaderEnds = "TESTBED_PROCESS_LEADER_ENDS"

func init() { // runs in the first thread
	if os.Getenv(leaderEnds) == "" {
		return
	}
	// A system call that blocks has a thread of its own.
	go syscall.Pause()
	runtime.Gosched()
	syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}

// QEMU had its disks' locks and its tap when the first of its threads had ended, and the
// next one was refused them.
func TestZombieWithThreadsIsAlive(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spec := Spec{
		Name: "half", Argv: []string{self}, Env: []string{leaderEnds + "=1"},
		LogPath: filepath.Join(dir, "log"), PIDPath: filepath.Join(dir, "half.pid"),
	}
	running, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Stop(context.Background(), spec.PIDPath, 0) })
	tick := time.Tick(5 * time.Millisecond)
	for deadline := time.Now().Add(5 * time.Second); ; <-tick {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", running.PID))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the first thread did not end: %s", stat)
		}
	}
	if !running.Alive() {
		syscall.Kill(running.PID, syscall.SIGKILL)
		t.Fatal("gone while a thread lives")
	}
	if err := Stop(t.Context(), spec.PIDPath, 0); err != nil {
		t.Fatal(err)
	}
	<-running.Exited
	if running.Alive() {
		t.Error("alive after stop")
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	for name, test := range map[string]struct {
		stat  string
		ticks uint64
		fails bool
	}{
		"plain":               {"12 (etcd)" + rest, 4242, false},
		"parenthesis in name": {"12 (a) S 7 (b)" + rest, 4242, false},
		"zombie":              {"12 (etcd)" + strings.NewReplacer(" S ", " Z ", " 17 18", " 1 18").Replace(rest), 0, true},
		"zombie with threads": {"12 (etcd)" + strings.Replace(rest, " S ", " Z ", 1), 4242, false},
		"short":               {"12 (etcd) S 1", 0, true},
		"no name":             {"12", 0, true},
		"empty":               {"", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			ticks, err := parseStat(test.stat)
			if ticks != test.ticks || (err != nil) != test.fails {
				t.Errorf("parseStat = %d, %v", ticks, err)
			}
		})
	}
}
