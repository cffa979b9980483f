// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultTermGrace is what a program gets between SIGTERM and SIGKILL. lvm holds
	// signals back while devices are suspended and ends cleanly soon after; killed
	// outright it could leave a volume suspended.
	defaultTermGrace = 5 * time.Second
	// defaultKillGrace is how long a killed program is waited for. One that hangs in the
	// kernel on a dead disk does not go, and must not hold its caller.
	defaultKillGrace = 2 * time.Second
	// drainDelay is how long the output is read on after the program itself has
	// ended, when a child of it still holds the pipe.
	drainDelay = 2 * time.Second
)

// Run runs a program on the host and waits for it.
//
// An error is an *ExitError when the program ran and did not exit with 0; it wraps
// the context's error when the deadline or a cancellation ended it. It wraps
// volume.ErrToolMissing when the host has no such program. Any other error means
// that it could not be started, or that its output could not be kept whole.
//
// When the time is up the whole process group gets SIGTERM, then SIGKILL. Run
// returns at the latest a few seconds after that, also when the program hangs in
// the kernel (ExitError.Stuck). When this process is killed itself, what it runs
// goes on until the container's control group is killed: observe after a restart.
func (h *Host) Run(ctx context.Context, c Command) (Result, error) {
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return Result{ExitCode: -1}, fmt.Errorf("run %s: %w", c.Name, err)
	}

	p := &process{command: c, termGrace: h.termGrace, killGrace: h.killGrace}
	if c.Stdout != nil {
		p.streamed = &stream{to: c.Stdout}
		defer p.streamed.end()
	}
	began := time.Now()
	if err := h.inAllNamespaces(p.start); err != nil {
		return Result{ExitCode: -1}, fmt.Errorf("run %s: %w", c.Name, err)
	}
	err := p.wait(ctx)
	res := p.result(time.Since(began))
	err = p.judge(ctx, res, err)
	if h.observer != nil {
		h.observer.CommandDone(c.Name, res.Duration, err == nil)
	}
	return res, err
}

// process is one run of a command.
type process struct {
	command Command
	cmd     *exec.Cmd

	termGrace, killGrace time.Duration

	stdout boundedBuffer
	// streamed is nil unless somebody reads the standard output as it comes.
	streamed *stream
	stderr   boundedBuffer
	report   boundedBuffer
	// reportDone is closed when the report's pipe was read to its end.
	reportDone chan struct{}
	reportPipe *os.File
	// exited is closed when the program has ended; it is a zombie until reaped, so
	// that its process group's number belongs to nobody else.
	exited chan struct{}
	// killed is true when the deadline or a cancellation made us signal it.
	killed bool
	// stuck is true when it did not go after SIGKILL.
	stuck bool
}

// start looks the program up and starts it, in the calling thread's namespaces.
func (p *process) start() error {
	path, err := lookPath(p.command.Name)
	if err != nil {
		return err
	}
	p.cmd = &exec.Cmd{
		Path:   path,
		Args:   append([]string{p.command.Name}, p.command.Args...),
		Dir:    "/",
		Env:    append([]string{"LC_ALL=C", "PATH=" + searchPath}, p.command.Env...),
		Stdout: &p.stdout,
		Stderr: &p.stderr,
		// The group is what is killed, so that no child of the program survives it.
		SysProcAttr: &unix.SysProcAttr{Setpgid: true},
		WaitDelay:   drainDelay,
	}
	if p.streamed != nil {
		p.cmd.Stdout = p.streamed
	}
	if len(p.command.Stdin) > 0 {
		p.cmd.Stdin = bytes.NewReader(p.command.Stdin)
	}
	var reportWriter *os.File
	if p.command.ReportFD {
		if p.reportPipe, reportWriter, err = os.Pipe(); err != nil {
			return err
		}
		p.cmd.ExtraFiles = []*os.File{reportWriter}
	}
	err = p.cmd.Start()
	if reportWriter != nil {
		err = errors.Join(err, reportWriter.Close())
	}
	if err != nil {
		if p.reportPipe != nil {
			err = errors.Join(err, p.reportPipe.Close())
		}
		return err
	}
	p.exited = make(chan struct{})
	go p.watch()
	if p.reportPipe != nil {
		p.reportDone = make(chan struct{})
		go p.readReport()
	}
	return nil
}

// watch waits for the program's end without reaping it.
func (p *process) watch() {
	defer close(p.exited)
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

func (p *process) readReport() {
	defer close(p.reportDone)
	_, _ = io.Copy(&p.report, p.reportPipe) // ends by EOF, or by finish's deadline
}

// wait waits for the program's end or ends it when ctx is done. It returns what
// exec.Cmd.Wait returned; nil when the program is stuck.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return p.finish()
	case <-ctx.Done():
	}
	p.killed = true
	p.signal(unix.SIGTERM)
	if !p.exitsWithin(p.termGrace) {
		p.signal(unix.SIGKILL)
		if !p.exitsWithin(p.killGrace) {
			p.stuck = true
			go func() {
				<-p.exited
				_ = p.finish() // reaps it whenever the kernel lets it go
			}()
			return nil
		}
	}
	p.signal(unix.SIGKILL) // its children, while its zombie holds the group's number
	return p.finish()
}

func (p *process) signal(sig unix.Signal) {
	_ = unix.Kill(-p.cmd.Process.Pid, sig) // ESRCH: nobody is left, as wanted
}

func (p *process) exitsWithin(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.exited:
		return true
	case <-t.C:
		return false
	}
}

// finish reaps the program and reads its output to the end, at most for drainDelay.
func (p *process) finish() error {
	err := p.cmd.Wait()
	if p.reportPipe == nil {
		return err
	}
	derr := p.reportPipe.SetReadDeadline(time.Now().Add(drainDelay))
	if derr == nil {
		<-p.reportDone
	}
	return errors.Join(err, derr, p.reportPipe.Close())
}

// result is what is known of the run.
func (p *process) result(d time.Duration) Result {
	res := Result{ExitCode: -1, Duration: d}
	res.Stdout, _ = p.stdout.snapshot()
	res.Stderr, _ = p.stderr.snapshot()
	res.Report, _ = p.report.snapshot()
	if !p.stuck && p.cmd.ProcessState != nil {
		res.ExitCode = p.cmd.ProcessState.ExitCode()
	}
	return res
}

// judge makes the error of the run.
func (p *process) judge(ctx context.Context, res Result, waitErr error) error {
	var exit *exec.ExitError
	if p.streamed != nil {
		if err := p.streamed.failure(); err != nil {
			return fmt.Errorf("run %s: its standard output was not taken to its end: %w", p.command.Name, err)
		}
	}
	if p.killed || res.ExitCode != 0 || errors.As(waitErr, &exit) {
		e := &ExitError{Command: p.command.String(), ExitCode: res.ExitCode, Stderr: string(res.Stderr), Stuck: p.stuck}
		if p.killed {
			e.cause = ctx.Err()
			e.TimedOut = errors.Is(e.cause, context.DeadlineExceeded)
		}
		return e
	}
	if waitErr != nil {
		return fmt.Errorf("run %s: keep its output: %w", p.command.Name, waitErr)
	}
	for _, s := range []struct {
		name string
		buf  *boundedBuffer
	}{{"standard output", &p.stdout}, {"report", &p.report}} {
		if _, overflow := s.buf.snapshot(); overflow {
			return fmt.Errorf("run %s: its %s is larger than %d bytes and was cut", p.command.Name, s.name, outputLimitBytes)
		}
	}
	return nil
}
