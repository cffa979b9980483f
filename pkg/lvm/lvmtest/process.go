// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
)

// Runner returns what runs programs during the present boot.
func (h *Host) Runner() lvm.Runner {
	h.mu.Lock()
	defer h.mu.Unlock()
	return runner{h, h.boot}
}

type runner struct {
	h    *Host
	boot int
}

// process is one lvm process.
type process struct {
	h              *Host
	report, stderr bytes.Buffer
	// spoil is what becomes of the report in the end.
	spoil Mode
	// waits until it is killed.
	waits bool
}

// Run implements lvm.Runner.
func (r runner) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	lines := [][]string{cmd.Args}
	shell := len(cmd.Args) == 0
	if shell {
		lines = nil
		for line := range strings.Lines(string(cmd.Stdin)) {
			lines = append(lines, split(line))
		}
	}
	r.h.begin(lines)
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	p := &process{h: r.h}
	err := p.run(ctx, r.boot, cmd, lines, shell)
	if err == nil && p.waits {
		r.h.mu.Unlock()
		<-ctx.Done()
		r.h.mu.Lock()
		err = killed(cmd.Name, true)
	}
	return hostexec.Result{Report: p.report.Bytes(), Stderr: p.stderr.Bytes()}, err
}

// begin counts and notes the process.
func (h *Host) begin(lines [][]string) {
	h.mu.Lock()
	h.processes++
	var changing []string
	for _, words := range lines {
		if len(words) > 0 && words[0] != "lvs" && words[0] != "pvs" {
			changing = append(changing, strings.Join(words, " "))
		}
	}
	h.commands = append(h.commands, changing...)
	running := h.running
	h.mu.Unlock()
	if running != nil {
		running(changing)
	}
}

func (p *process) run(ctx context.Context, boot int, cmd hostexec.Command, lines [][]string, shell bool) error {
	if err := p.h.alive(ctx, boot); err != nil {
		return err
	}
	p.h.settle()
	if cmd.Name != "lvm" {
		return fmt.Errorf("lvmtest: there is no program %q", cmd.Name)
	}
	if shell && (!cmd.ReportFD || !slices.Contains(cmd.Env, "LVM_REPORT_FD=3")) {
		return fmt.Errorf("lvmtest: the report would be lost")
	}
	for _, words := range lines {
		if err := p.line(words, shell); err != nil {
			return err
		}
	}
	switch p.spoil {
	case Garbage:
		p.report.Reset()
		p.report.WriteString("{\"report\": [ {\"lv\":\x00\xff")
	case Truncate:
		p.report.Truncate(p.report.Len() / 2)
	case Silent:
		p.report.Reset()
	}
	return nil
}

// line runs one command. An error ends the process.
func (p *process) line(words []string, shell bool) error {
	if len(words) == 0 {
		return nil
	}
	c, err := parse(words)
	if err != nil {
		fmt.Fprintf(&p.stderr, "  %v\n", err)
		return p.end(shell, c.name)
	}
	if shell && c.asks && !c.has("--yes") {
		return fmt.Errorf("lvmtest: %s would read the next line as an answer", c.name)
	}
	mode := p.h.take(c.name)
	if !c.changes {
		p.spoil = mode
		p.answer(c)
		if mode == DieBefore || mode == DieWithin || mode == DieAfter || mode == HangBefore || mode == HangAfter {
			return killed(c.name, mode == HangBefore || mode == HangAfter)
		}
		return nil
	}
	switch mode {
	case DieBefore, HangBefore:
		return killed(c.name, mode == HangBefore)
	case Refuse:
		fmt.Fprintln(&p.stderr, "  Internal error: something went wrong.")
		return p.end(shell, c.name)
	case Lie:
		return nil
	case Garbage, Truncate, Silent:
		p.spoil = mode
	}
	if err := p.h.step(); err != nil {
		return err
	}
	said, err := p.change(c, func() error {
		if mode == DieWithin {
			return killed(c.name, false)
		}
		return p.h.step()
	})
	if err != nil {
		return err
	}
	if err := p.h.step(); err != nil {
		return err
	}
	if mode == DieAfter || mode == HangAfter {
		return killed(c.name, mode == HangAfter)
	}
	if said != "" {
		fmt.Fprintf(&p.stderr, "  %s\n", said)
		return p.end(shell, c.name)
	}
	return nil
}

// end is what a command that failed makes of its process: the shell goes on.
func (p *process) end(shell bool, name string) error {
	if shell {
		return nil
	}
	const failed = 5 // ECMD_FAILED, as lvm returns it (tools/errors.h)
	return &hostexec.ExitError{Command: name, ExitCode: failed, Stderr: p.stderr.String()}
}
