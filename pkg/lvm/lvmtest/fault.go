// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"errors"
	"slices"

	"github.com/berth-dev/berth/pkg/hostexec"
)

// Mode is a way to go wrong.
type Mode string

// The modes of a Fault.
const (
	// DieBefore: the process is killed when it comes to the command.
	DieBefore Mode = "dies before"
	// DieWithin: the process is killed after the metadata was changed and before the
	// device nodes follow, or the other way round for a removal.
	DieWithin Mode = "dies within"
	// DieAfter: the process is killed when the command is done.
	DieAfter Mode = "dies after"
	// HangBefore, HangAfter: the same by a deadline.
	HangBefore Mode = "hangs before"
	HangAfter  Mode = "hangs after"
	// Refuse: the command does nothing and says something that is in no table.
	Refuse Mode = "refuses"
	// Lie: the command does nothing and says that it was done.
	Lie Mode = "lies"
	// Garbage: all is done, and the report is not one.
	Garbage Mode = "garbage"
	// Truncate: all is done, and the report ends in the middle.
	Truncate Mode = "truncates"
	// Silent: all is done, and there is no report.
	Silent Mode = "is silent"
	// FailAfter: all is done, and the process says that it failed.
	FailAfter Mode = "fails after"
	// Stale: all is done, and the report is of how it was before the process.
	Stale Mode = "is stale"
	// OtherGroup: all is done, and the report is of another volume group of that name.
	OtherGroup Mode = "shows another group"
	// WrongSizes: all is done, and the report says that volumes are half as large.
	WrongSizes Mode = "shows wrong sizes"
)

// Modes are all ways to go wrong.
func Modes() []Mode {
	return []Mode{DieBefore, DieWithin, DieAfter, HangBefore, HangAfter, Refuse, Lie, Garbage, Truncate, Silent, FailAfter, Stale, OtherGroup, WrongSizes}
}

// Fault goes wrong once, at the next use of a command.
type Fault struct {
	// Command is the name of the command ("lvcreate", "lvs").
	Command string
	Mode    Mode
}

// Inject adds a fault.
func (h *Host) Inject(f Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, f)
}

// Faults returns the faults that have not been used yet.
func (h *Host) Faults() []Fault {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.faults
}

// LosePower lets the power fail at the n-th step from now that changes anything.
// From there on nothing has an effect, until Reboot. The function tells whether
// it came that far.
func (h *Host) LosePower(n int) (lost func() bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.countdown = n
	return func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.dead
	}
}

// step is a moment in which the power may fail.
func (h *Host) step() error {
	if h.dead {
		return errPower
	}
	if h.countdown == 0 {
		h.dead = true
		return errPower
	}
	h.countdown--
	return nil
}

var (
	errPower = errors.New("lvmtest: the power has failed")
	errBlind = errors.New("lvmtest: nothing can be observed")
)

// take returns and removes the fault of a command.
func (h *Host) take(command string) Mode {
	for i, f := range h.faults {
		if f.Command == command {
			h.faults = append(h.faults[:i:i], h.faults[i+1:]...)
			return f.Mode
		}
	}
	return ""
}

// spoils reports whether one of the commands is going to spoil the report like that.
func (h *Host) spoils(mode Mode, lines [][]string) bool {
	return slices.ContainsFunc(h.faults, func(f Fault) bool {
		return f.Mode == mode && slices.ContainsFunc(lines, func(words []string) bool { return len(words) > 0 && faultsOf(words[0]) == f.Command })
	})
}

// faultsOf is the command whose faults one has: the report of the devices has those of pvs,
// whoever prints it.
func faultsOf(command string) string {
	if command == "vgs" {
		return "pvs"
	}
	return command
}

// failed is what a process ends with that says that a command failed.
func failed(command, stderr string) error {
	const code = 5 // ECMD_FAILED, as lvm returns it (tools/errors.h)
	return &hostexec.ExitError{Command: command, ExitCode: code, Stderr: stderr}
}

func killed(command string, timedOut bool) error {
	return &hostexec.ExitError{Command: command, ExitCode: -1, TimedOut: timedOut}
}
