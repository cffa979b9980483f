// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
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
	// before are the groups at its start, if a report is going to show these.
	before []*group
	// fails in the end, with all done.
	fails bool
	// selected is true after a command with --select.
	selected bool
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
		if len(words) > 0 && !slices.Contains([]string{"lvs", "pvs", "vgs"}, words[0]) {
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
	if cmd.Name == "thin_dump" {
		return p.thinDump(cmd)
	}
	p.h.settle()
	if cmd.Name != "lvm" {
		return fmt.Errorf("lvmtest: there is no program %q", cmd.Name)
	}
	if shell && (!cmd.ReportFD || !slices.Contains(cmd.Env, "LVM_REPORT_FD=3")) {
		return fmt.Errorf("lvmtest: the report would be lost")
	}
	if p.h.spoils(Stale, lines) {
		for _, g := range p.h.groups {
			p.before = append(p.before, g.clone())
		}
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
	case OtherGroup:
		for i, g := range p.h.groups {
			p.replace(g.uuid, fmt.Sprintf("Anothe-rGro-upOf-That-Name-0000-%06d", i))
		}
	case WrongSizes:
		p.halve()
	}
	if p.fails {
		return failed(cmd.Name, p.stderr.String())
	}
	return nil
}

// replace changes what the report says.
func (p *process) replace(what, with string) {
	text := strings.ReplaceAll(p.report.String(), what, with)
	p.report.Reset()
	p.report.WriteString(text)
}

var sizeField = regexp.MustCompile(`LVM2_LV_SIZE='([0-9]+)'`)

func (p *process) halve() {
	text := sizeField.ReplaceAllStringFunc(p.report.String(), func(field string) string {
		size, err := strconv.ParseInt(sizeField.FindStringSubmatch(field)[1], 10, 64)
		p.h.must(err)
		return fmt.Sprintf("LVM2_LV_SIZE='%d'", size/2)
	})
	p.report.Reset()
	p.report.WriteString(text)
}

// answerStale prints what lvs or pvs would have printed at the start of the process.
func (p *process) answerStale(c command) {
	now := p.h.groups
	p.h.groups = p.before
	p.answer(c)
	p.h.groups = now
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
	if shell && p.selected && c.name == "pvs" {
		return killed("lvm", false) // it crashes, with many volumes
	}
	p.selected = p.selected || c.has("--select")
	mode := p.h.take(faultsOf(c.name))
	if !c.changes {
		if mode != "" {
			p.spoil = mode
		}
		p.fails = p.fails || mode == FailAfter
		if p.spoil == Stale {
			p.answerStale(c)
		} else {
			p.answer(c)
		}
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
	case Garbage, Truncate, Silent, Stale, OtherGroup, WrongSizes:
		p.spoil = mode
	case FailAfter:
		p.fails = true
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
	return failed(name, p.stderr.String())
}
