// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// Runner runs a program on the host; hostexec.Host is one.
type Runner interface {
	Run(ctx context.Context, command hostexec.Command) (hostexec.Result, error)
}

// Content is what libblkid found on a device.
type Content struct {
	// Found is true when it found anything. False is not proof of emptiness: it
	// knows only what it knows. Blank is the proof.
	Found bool
	// Ambivalent is true when several signatures contradict each other: the content
	// is unknown, and there is some.
	Ambivalent bool
	// Type as libblkid names it (ext4, LVM2_member, swap), Kind is filesystem, raid,
	// crypto or other.
	Type, Kind  string
	UUID, Label string
	// PartitionTable is gpt, dos, … or empty.
	PartitionTable     string
	PartitionTableUUID string
}

// The exit codes of blkid --probe (blkid(8)).
const (
	blkidNothing    = 2
	blkidAmbivalent = 8
)

const probeTimeout = 30 * time.Second

// Prober asks the host's blkid.
type Prober struct {
	Runner Runner
	// HostRoot is where the host's files are seen, "/" when empty.
	HostRoot string
}

// Probe looks at the content of a device by libblkid's low-level probing, past
// every cache and past what udev remembers. path is the host's ("/dev/vdb").
//
// blkid exits with 2 for an empty device as well as for one that is not there or
// cannot be read, so the node is looked at before and after, and anything that
// blkid complains about is an error. volume.ErrNotFound: there is no such node.
func (p Prober) Probe(ctx context.Context, path string) (Content, error) {
	if err := p.requireNode(path); err != nil {
		return Content{}, err
	}
	result, err := p.Runner.Run(ctx, hostexec.Command{
		Name: "blkid", Args: []string{"-p", "-o", "export", "--", path}, Timeout: probeTimeout,
	})
	var exit *hostexec.ExitError
	switch {
	case err == nil:
		return ParseProbe(result.Stdout), nil
	case errors.As(err, &exit) && exit.ExitCode == blkidAmbivalent && !exit.TimedOut:
		content := ParseProbe(result.Stdout)
		content.Found, content.Ambivalent = true, true
		return content, nil
	case errors.As(err, &exit) && exit.ExitCode == blkidNothing && !exit.TimedOut && strings.TrimSpace(exit.Stderr) == "":
		if err := p.requireNode(path); err != nil {
			return Content{}, err
		}
		return Content{}, nil
	}
	return Content{}, fmt.Errorf("probe %s: %w", path, err)
}

func (p Prober) requireNode(path string) error {
	info, err := os.Stat(filepath.Join("/", p.HostRoot, path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("probe %s: %w: %w", path, volume.ErrNotFound, err)
	case err != nil:
		return fmt.Errorf("probe %s: %w", path, err)
	case !isBlockDevice(info):
		return fmt.Errorf("probe %s: not a block device: %w", path, volume.ErrInvalid)
	}
	return nil
}

// ParseProbe reads the output of blkid --probe --output export: NAME=value a line,
// special characters escaped by a backslash, others as \xHH. What a partition says
// of its own entry in the table is not content.
func ParseProbe(out []byte) Content {
	var c Content
	for _, line := range hostexec.Lines(out) {
		key, value, found := strings.Cut(line, "=")
		if !found || key == "DEVNAME" || strings.HasPrefix(key, "PART_ENTRY_") {
			continue
		}
		value = printable([]byte(unescapeShell(value)))
		c.Found = true
		switch key {
		case "TYPE":
			c.Type = value
		case "USAGE":
			c.Kind = value
		case "UUID":
			c.UUID = value
		case "LABEL":
			c.Label = value
		case "PTTYPE":
			c.PartitionTable = value
		case "PTUUID":
			c.PartitionTableUUID = value
		}
	}
	return c
}

func unescapeShell(s string) string {
	if !strings.Contains(s, "\\") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if s[i+1] == 'x' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		i++
		b.WriteByte(s[i])
	}
	return b.String()
}
