// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// Runner runs one program on the host; *hostexec.Host is one.
type Runner interface {
	Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error)
}

const (
	// baseTimeout bounds one lvm process, and lineTimeout is added for each command
	// in it. Beside the work they cover waiting for the lock of the volume group,
	// which an operator's pvmove or vgcfgbackup may hold for a while.
	baseTimeout = time.Minute
	lineTimeout = 10 * time.Second
)

// Client drives the host's lvm. It holds no state and is safe for concurrent use;
// lvm itself locks each volume group on the host.
type Client struct {
	runner Runner
	flush  Flusher
}

// NewClient returns a Client that runs lvm by the runner and makes durable by flush what
// lvm has written.
func NewClient(runner Runner, flush Flusher) *Client {
	return &Client{runner: runner, flush: flush}
}

// Observe returns a report of the volume groups on the given devices, or, when
// there are none, on every device that the host's lvm.conf and devices file let
// lvm see. An error means that nothing was learned.
func (c *Client) Observe(ctx context.Context, devices []string) (*Report, error) {
	report, stderr, err := c.shell(ctx, session{devices: devices}, nil)
	if err != nil {
		return nil, fmt.Errorf("observe volume groups: %w", explain(stderr, err))
	}
	return report, nil
}

// session is what holds for all lines of one process.
type session struct {
	// devices that lvm sees; none leaves it to the host.
	devices []string
	// settings of lvm's section "activation" (lvm.conf) for the commands.
	settings []string
	// legs are reported too.
	legs bool
	// thin volumes are reported with their numbers.
	thin bool
	// foreignPool: what lies below thin pools is reported too, and how they are.
	foreignPool bool
	// segments are reported in addition, but after a command with --select.
	segments bool
}

// shell runs commands in one lvm process, by lvm's own command shell, and then
// the two reports. A command that fails does not stop the next one. The process's
// exit code says nothing about them: what was done is in the report, why
// something was not is on stderr. The error is nil only with a complete report.
//
// A command in the shell must not ask anything: lvm would take the following
// lines of its input for the answer (yes_no_prompt in lib/display/display.c). So
// only commands with --yes, or those that never ask, may be given.
func (c *Client) shell(ctx context.Context, s session, commands [][]string) (*Report, []byte, error) {
	lines := append(slices.Clone(commands), reports(s, commands)...)
	result, err := c.lines(ctx, s, lines, len(commands))
	if err != nil {
		return nil, result.Stderr, err
	}
	report, err := ParseReport(result.Report)
	if err != nil {
		return nil, result.Stderr, err
	}
	report.markDuplicates(result.Stderr)
	return report, result.Stderr, nil
}

// run is shell without the reports: what was done must be looked for elsewhere. The error is nil
// when the process came to its end, whatever became of the commands.
func (c *Client) run(ctx context.Context, s session, commands [][]string) (stderr []byte, err error) {
	result, err := c.lines(ctx, s, commands, len(commands))
	var exit *hostexec.ExitError
	if errors.As(err, &exit) && exit.ExitCode > 0 && !exit.TimedOut && !exit.Stuck {
		err = nil // the shell exits with the code of its last command
	}
	return result.Stderr, err
}

// lines runs lvm's shell.
func (c *Client) lines(ctx context.Context, s session, lines [][]string, commands int) (hostexec.Result, error) {
	input, err := script(s, lines)
	if err != nil {
		return hostexec.Result{}, err
	}
	return c.runner.Run(ctx, hostexec.Command{
		Name:  "lvm",
		Stdin: input,
		Env: []string{
			"LVM_REPORT_FD=3",
			"LVM_SUPPRESS_FD_WARNINGS=1",
			// The shell keeps a history of its lines in $HOME, and in the working directory
			// when there is no $HOME (tools/lvm.c: _hist_file).
			"HOME=/dev/null",
		},
		ReportFD: true,
		Timeout:  baseTimeout + time.Duration(commands)*lineTimeout,
	})
}

// reports are the commands that report how the groups are after the commands.
func reports(s session, commands [][]string) [][]string {
	report := []string{"--noheadings", "--nameprefixes", "--units", "b", "--nosuffix"}
	command, fields := []string{"lvs"}, volumeFields
	if s.legs || s.foreignPool {
		command, fields = append(command, "-a"), fields+","+legFields
	}
	if s.foreignPool {
		fields += "," + poolFields
	}
	if s.thin {
		fields += "," + thinFields
	}
	lines := [][]string{
		append(append(command, report...), "-o", fields),
		// --foreign, --shared: show groups that other hosts own as what they are.
		append(append([]string{devicesReport(commands), "--foreign", "--shared"}, report...), "-o", deviceFields),
	}
	if s.segments && !selects(commands) { // else a process of its own looks at them
		lines = append(lines, append(append([]string{"pvs", "--segments"}, report...), "-o", segmentFields))
	}
	return lines
}

// script is the shell's input: a line per command.
func script(s session, lines [][]string) ([]byte, error) {
	if err := validatePaths(s.devices); err != nil {
		return nil, err
	}
	var input bytes.Buffer
	for _, words := range lines {
		if words[0] == pvmove && len(s.devices) == 0 {
			return nil, errAllMoves
		}
		for i, word := range words {
			if !wordPattern.MatchString(word) {
				return nil, fmt.Errorf("%w: %q cannot stand in a command for lvm", volume.ErrInvalid, word)
			}
			if i > 0 {
				input.WriteByte(' ')
			}
			input.WriteString(word)
			if i == 0 {
				if config := configFor(words, s); config != "" {
					input.WriteString(" --config '" + config + "'")
				}
			}
		}
		input.WriteByte('\n')
	}
	return input.Bytes(), nil
}

// devicesReport is the command that reports the devices. After a command with --select, pvs
// would read memory that was freed: lvm 2.03.31 crashes of it in most cases where a group has a
// hundred volumes (the log report of the shell keeps a pointer to the ID of what was selected;
// id_write_format from report_current_object_cmdlog in tools/toollib.c). vgs prints the same
// rows (_report in tools/reporter.c), but for those of devices without a group. Segments it
// does not print: it reports nothing of volumes beside devices.
func devicesReport(commands [][]string) string {
	if selects(commands) {
		return "vgs"
	}
	return "pvs"
}

func selects(commands [][]string) bool {
	return slices.ContainsFunc(commands, func(words []string) bool { return slices.Contains(words, "--select") })
}

// withoutUdev are settings with which lvm makes the nodes of its volumes itself
// and does not wait for udev, which is most of what it waits for otherwise. udev
// still sees every event and keeps its links in /dev/disk; only those of lvm and
// device-mapper are not its work (_get_udev_flags in lib/activate/dev_manager.c).
// The option --noudevsync alone leaves the nodes to udev and waits for nothing, so
// that lvcreate cannot open the new volume to wipe it.
const withoutUdev = "udev_sync=0 udev_rules=0"

// configFor returns the configuration of one line; empty where it needs none.
func configFor(words []string, s session) string {
	var config string
	if len(s.devices) > 0 {
		config = onlyDevices(s.devices)
	}
	switch {
	case words[0] != "lvs" && words[0] != "pvs" && words[0] != "vgs":
		config += "activation{" + strings.Join(append([]string{withoutUdev}, s.settings...), " ") + "}"
	case (s.legs || s.foreignPool) && words[0] == "lvs", slices.Contains(words, "--segments"):
		config += "report{mark_hidden_devices=1}"
	}
	if words[0] == pvmove {
		config += ownPolling
	}
	return config
}

// errAllMoves: without a device pvmove is about all that it can see, of whatever volume group.
var errAllMoves = fmt.Errorf("%w: which devices pvmove is about is not known", volume.ErrInvalid)

// pvmove is lvm's command that moves extents, and ownPolling has it wait for them itself.
// Else it leaves that to a daemon of lvm, which would change the group when nobody has a
// way back.
const (
	pvmove     = "pvmove"
	ownPolling = "global{use_lvmpolld=0}"
)

// onlyDevices is a configuration in which lvm sees nothing but these devices. The
// option --devices would say the same, but may be used only once in a process: lvm
// 2.03.31 crashes at the second use, because the list of devices is kept in memory
// that is freed after each command (_setup_devices_list in lib/device/dev-cache.c,
// devices_file_exit in lib/device/device_id.c). The devices file is switched off,
// since lvm ignores the filter where there is one.
func onlyDevices(paths []string) string {
	var filter strings.Builder
	for _, path := range paths {
		filter.WriteString(`"a|^` + escapePath.Replace(path) + `$|",`)
	}
	return "devices{filter=[" + filter.String() + `"r|.*|"]use_devicesfile=0}`
}

// escapePath keeps what paths may contain from being read as regular expressions.
var escapePath = strings.NewReplacer(".", "[.]", "+", "[+]")

// markDuplicates notes what lvm only warns of.
func (r *Report) markDuplicates(stderr []byte) {
	twice := duplicates(stderr)
	for _, g := range r.Groups {
		for _, pv := range g.PVs {
			// Some messages show the UUID without its hyphens.
			g.duplicates = g.duplicates || twice[pv.UUID] || twice[strings.ReplaceAll(pv.UUID, "-", "")]
		}
	}
}

// single runs one command in a process of its own, with nothing on its standard
// input, so that every question it asks is answered by no. It is for commands
// that may meet content that is not ours: they get no --yes and no --force.
func (c *Client) single(ctx context.Context, args ...string) error {
	result, err := c.runner.Run(ctx, hostexec.Command{
		Name:    "lvm",
		Args:    args,
		Env:     []string{"LVM_SUPPRESS_FD_WARNINGS=1"},
		Timeout: baseTimeout,
	})
	if err == nil {
		return nil
	}
	var exit *hostexec.ExitError
	if errors.As(err, &exit) && exit.TimedOut {
		// Words printed before the end do not explain an end by force.
		return err
	}
	return explain(result.Stderr, err)
}
