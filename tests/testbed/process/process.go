// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process starts programs that outlive the command that started them,
// and ends exactly those: a pid file records the process's start time, so that
// a pid which the kernel has given to somebody else is never signalled.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Identity names one process for as long as the machine runs.
type Identity struct {
	PID int `json:"pid"`
	// StartTicks is field 22 of /proc/PID/stat (proc_pid_stat(5)): when the
	// process started, in clock ticks since boot.
	StartTicks uint64 `json:"startTicks"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"bootID"`
}

// Spec describes a program to start.
type Spec struct {
	// Name is what errors call it.
	Name string
	Argv []string
	// Dir is its working folder; empty means the caller's.
	Dir string
	// Env is added to the caller's environment.
	Env []string
	// Favour gives it more than its even share of the processors, so that
	// builds and tests beside it do not starve it.
	Favour bool
	// LogPath takes its output; the file is truncated.
	LogPath string
	// PIDPath is the pid file.
	PIDPath string
}

// Process is a running program that this process started or found.
type Process struct {
	Identity
	// Exited is closed when the program ended. It is nil for a process that
	// was started by somebody else.
	Exited <-chan struct{}
}

// Start starts a program in a session of its own and writes its pid file. It
// refuses to start what already runs.
func Start(spec Spec) (*Process, error) {
	if running, err := Find(spec.PIDPath); err != nil {
		return nil, err
	} else if running != nil {
		return nil, fmt.Errorf("start %s: it already runs as pid %d", spec.Name, running.PID)
	}
	log, err := os.Create(spec.LogPath)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	defer log.Close()
	command := exec.Command(spec.Argv[0], spec.Argv[1:]...)
	command.Dir = spec.Dir
	command.Env = append(os.Environ(), spec.Env...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	exited := make(chan struct{})
	identity, err := identify(command.Process.Pid)
	if err == nil {
		err = write(spec.PIDPath, identity)
	}
	if err != nil {
		command.Process.Kill()
		command.Wait()
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	if spec.Favour {
		favour(identity.PID)
	}
	go func() {
		command.Wait() // nobody needs the status: the log tells more
		close(exited)
	}()
	return &Process{Identity: identity, Exited: exited}, nil
}

// favour raises a process's priority: its own, and that of its session, which
// the kernel schedules as one where autogroups are on (sched(7)). It is best
// effort: without it everything works, only later.
func favour(pid int) {
	const nice = -10
	syscall.Setpriority(syscall.PRIO_PROCESS, pid, nice)
	os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(nice)), 0)
}

// Find returns the running process that a pid file names. It returns nil,
// without an error, if there is no such file or that process has ended.
func Find(pidPath string) (*Process, error) {
	content, err := os.ReadFile(pidPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pid file: %w", err)
	}
	if !json.Valid(content) {
		return nil, nil // its writer was killed while writing: see write
	}
	var identity Identity
	if err := json.Unmarshal(content, &identity); err != nil {
		return nil, fmt.Errorf("read %s: %w", pidPath, err)
	}
	if !identity.Alive() {
		return nil, nil
	}
	return &Process{Identity: identity}, nil
}

// Alive tells whether this very process runs. A zombie does not, once all its threads
// have ended.
func (i Identity) Alive() bool {
	now, err := identify(i.PID)
	return err == nil && now == i
}

// Stop ends the process that a pid file names: SIGTERM, and SIGKILL if it is
// still there after grace (at once if grace is 0). It returns when the process
// is gone, and removes the pid file. Nothing to stop is no error.
func Stop(ctx context.Context, pidPath string, grace time.Duration) error {
	running, err := Find(pidPath)
	if err != nil {
		return err
	}
	if running != nil {
		if err := running.stop(ctx, grace); err != nil {
			return fmt.Errorf("stop %s: %w", strings.TrimSuffix(filepath.Base(pidPath), ".pid"), err)
		}
	}
	if err := os.Remove(pidPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (i Identity) stop(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		if err := i.signal(syscall.SIGTERM); err != nil {
			return err
		}
		if i.await(ctx, grace) {
			return nil
		}
	}
	if err := i.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !i.await(ctx, 10*time.Second) {
		return fmt.Errorf("pid %d is still there 10 s after SIGKILL", i.PID)
	}
	return nil
}

// signal sends a signal through a pidfd, which names the process even if its
// pid is given to another one between the check and the signal.
func (i Identity) signal(signal syscall.Signal) error {
	handle, err := os.FindProcess(i.PID) // opens a pidfd
	if err != nil {
		return err
	}
	defer handle.Release()
	if !i.Alive() {
		return nil
	}
	if err := handle.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal pid %d: %w", i.PID, err)
	}
	return nil
}

// await tells whether the process ended in time.
func (i Identity) await(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for tick := time.Tick(20 * time.Millisecond); i.Alive(); {
		select {
		case <-ctx.Done():
			return false
		case <-tick:
		}
	}
	return true
}

// identify returns the identity of the process that has a pid now. A zombie is
// os.ErrProcessDone.
func identify(pid int) (Identity, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, err
	}
	ticks, err := parseStat(string(content))
	if err != nil {
		return Identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTicks: ticks, BootID: strings.TrimSpace(string(boot))}, nil
}

// parseStat takes the start time out of /proc/PID/stat. The second field is
// the command's name in parentheses and may itself contain blanks and
// parentheses, so fields count from the last one.
func parseStat(stat string) (startTicks uint64, err error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("stat of a process without a name: %q", stat)
	}
	fields := strings.Fields(stat[end+1:]) // fields[0] is field 3, the state
	if len(fields) < 20 {
		return 0, fmt.Errorf("stat of a process with %d fields", len(fields)+2)
	}
	// A killed process with threads is a zombie as soon as its first thread has ended,
	// and has its files, locks and network interfaces until the last one has: field 20
	// (proc_pid_stat(5)) counts the threads.
	if fields[0] == "X" || fields[0] == "Z" && (fields[17] == "0" || fields[17] == "1") {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// write writes a pid file so that a reader sees the whole content or nothing.
func write(path string, identity Identity) error {
	content, err := json.Marshal(identity)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ResidentBytes returns the resident memory of a process (VmRSS), 0 if it is
// gone.
func (i Identity) ResidentBytes() int64 {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", i.PID))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(content))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
