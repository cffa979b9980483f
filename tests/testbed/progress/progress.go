// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package progress shows the steps of a long command: which one runs, what it
// is at, and how long each took. On a terminal the running step's line is
// redrawn; elsewhere (a CI log) every step prints one line when it ends, and a
// slow one a line now and then, so that nobody takes it for dead.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Printer prints the steps of one command.
type Printer struct {
	out      io.Writer
	terminal bool
	total    int
	// Every is how often a running step is shown. Zero means 1 s on a
	// terminal and 30 s elsewhere.
	Every time.Duration

	mu   sync.Mutex // guards what follows and the order of lines
	step int
}

// New returns a printer of a command with so many steps.
func New(out io.Writer, total int) *Printer {
	p := &Printer{out: out, total: total, Every: 30 * time.Second}
	if file, ok := out.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.terminal, p.Every = true, time.Second
		}
	}
	return p
}

// Step is one running step.
type Step struct {
	printer *Printer
	number  int
	name    string
	started time.Time

	mu     sync.Mutex
	detail string
}

// Detail says what the step is at. It shows the next time the step is drawn,
// and after the step's name when it ended.
func (s *Step) Detail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail = fmt.Sprintf(format, args...)
}

// Run runs one step and shows it. It returns do's error with the step's name
// in front.
func (p *Printer) Run(name string, do func(*Step) error) error {
	p.mu.Lock()
	p.step++
	step := &Step{printer: p, number: p.step, name: name, started: time.Now()}
	if p.terminal {
		fmt.Fprint(p.out, step.line("…"))
	}
	p.mu.Unlock()

	done := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		ticker := time.NewTicker(p.Every)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				p.mu.Lock()
				p.draw(step.line("… " + seconds(time.Since(step.started))))
				p.mu.Unlock()
			}
		}
	})
	err := do(step)
	close(done)
	drawing.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	end := seconds(time.Since(step.started))
	if err != nil {
		end = "FAILED after " + end
	}
	p.draw(step.line(end))
	if p.terminal {
		fmt.Fprintln(p.out)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// draw replaces the running step's line, or prints a line of its own where
// lines cannot be replaced.
func (p *Printer) draw(line string) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K", line)
		return
	}
	fmt.Fprintln(p.out, line)
}

func (s *Step) line(end string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("[%2d/%d] %s", s.number, s.printer.total, s.name)
	if s.detail != "" {
		line += " (" + s.detail + ")"
	}
	return line + " " + end
}

func seconds(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return fmt.Sprintf("%.0fs", d.Seconds())
}
