// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// starts runs what starts processes on a thread that lives as long as this process: the
// kernel ends a child with the thread that has started it (PR_SET_PDEATHSIG).
var starts = func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
}()

// process is a child that does not outlive this one.
type process struct {
	name   string
	argv   []string
	env    []string
	stdin  io.Reader
	stdout io.Writer
	log    string
	// unshare are the namespaces of its own (CLONE_NEWNS).
	unshare uintptr

	// mu guards what start replaces.
	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts it. What it says is added to its log.
func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, log
	if p.stdout == nil {
		cmd.Stdout = log
	}
	// A group of its own: Ctrl-C is for this process, which ends the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: p.unshare}
	result := make(chan error)
	starts <- func() { result <- cmd.Start() }
	if err := <-result; err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log says why
		close(ended)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.ended = cmd, ended
	return nil
}

// running is the process that was started last, nil before any was.
func (p *process) running() (*exec.Cmd, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd, p.ended
}

// pid of a process that was started.
func (p *process) pid() int {
	cmd, _ := p.running()
	return cmd.Process.Pid
}

// stop ends it: politely, and after the grace otherwise. A repeated call does nothing.
func (p *process) stop(grace time.Duration) {
	cmd, ended := p.running()
	if cmd == nil {
		return
	}
	if grace > 0 {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return
		case <-time.After(grace):
		}
	}
	select {
	case <-ended:
	default:
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with what it has started itself
		<-ended
	}
}

// err says that it has ended; its log has why.
func (p *process) err() error {
	cmd, ended := p.running()
	select {
	case <-ended:
		return fmt.Errorf("%s has ended (%s)", p.name, cmd.ProcessState)
	default:
		return nil
	}
}

// cpuSeconds is the processor time that it has used (proc_pid_stat(5), in ticks of 10 ms).
func (p *process) cpuSeconds() (float64, error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid()), "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(content), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("a short line in /proc/PID/stat")
	}
	var ticks float64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks / 100, nil
}

// lastLine of a log.
func lastLine(path string) string {
	lines := strings.Split(strings.TrimSpace(tail(path)), "\n")
	return lines[len(lines)-1]
}

func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-2000):])
}

// until waits until f says so, and returns what f said with it. It fails with the context, and
// when one of the processes ends; an error of f alone is what is said when the time is over.
func until(ctx context.Context, what string, limit time.Duration, processes []*process, f func() (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		done, err := f()
		if done {
			return err
		}
		for _, p := range processes {
			if ended := p.err(); ended != nil {
				return ended
			}
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("not within %s: %s", limit, what), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
