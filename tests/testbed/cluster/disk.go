// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
)

// Disks returns the disks of a node in the order in which they are attached
// when it starts.
func (c *Cluster) Disks(node string) ([]guest.Disk, error) {
	if _, err := c.node(node); err != nil {
		return nil, err
	}
	s, err := c.loadNode(node)
	return s.Disks, err
}

// ImagePath is where a disk's image is. The image of a foreign disk is raw: its
// bytes are the disk's.
func (c *Cluster) ImagePath(node string, disk guest.Disk) string {
	return filepath.Join(c.nodeDir(node), disk.Image)
}

// hotplugLimit bounds how long a guest may take to give a disk up.
const hotplugLimit = time.Minute

// AddDisk plugs a blank data disk into a node, running or not. If the node once
// had a disk of that serial, the disk comes back with what was on it, and its
// size and bus must be as they were.
func (c *Cluster) AddDisk(ctx context.Context, node string, disk guest.Disk) error {
	return c.changeNode(ctx, node, func(s *nodeState) error {
		if slices.ContainsFunc(s.Disks, func(d guest.Disk) bool { return d.Serial == disk.Serial }) {
			return fmt.Errorf("%s has a disk %s already", node, disk.Serial)
		}
		disk.Class, disk.Image = guest.ClassData, imageName(disk.Serial)
		if strings.HasPrefix(disk.Serial, nodeimage.ForeignSerialPrefix) {
			disk.Class = guest.ClassForeign // one that was removed comes back
		}
		switch had, err := disk.ImageSizeBytes(ctx, c.nodeDir(node)); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("%s: %w", node, err)
		case had != disk.SizeBytes:
			return fmt.Errorf("disk %s of %s had %d bytes, not %d: choose another serial for another disk", disk.Serial, node, had, disk.SizeBytes)
		}
		if err := disk.Create(ctx, c.nodeDir(node)); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		if err := c.withMonitor(ctx, node, func(m *guest.Monitor) error { return m.AddDisk(disk) }); err != nil {
			return err
		}
		s.Disks = append(s.Disks, disk)
		return nil
	})
}

// RemoveDisk unplugs a disk from a node, running or not. Its image stays until
// the testbed goes, so that AddDisk can bring it back.
func (c *Cluster) RemoveDisk(ctx context.Context, node, serial string) error {
	return c.changeNode(ctx, node, func(s *nodeState) error {
		at := slices.IndexFunc(s.Disks, func(d guest.Disk) bool { return d.Serial == serial })
		if at < 0 {
			return fmt.Errorf("%s of %s: %w", serial, node, ErrUnknownDisk)
		}
		disk := s.Disks[at]
		if disk.Class == guest.ClassRoot {
			return fmt.Errorf("%s of %s is the root disk", serial, node)
		}
		if err := c.withMonitor(ctx, node, func(m *guest.Monitor) error { return m.RemoveDisk(disk, hotplugLimit) }); err != nil {
			return err
		}
		s.Disks = slices.Delete(s.Disks, at, at+1)
		return nil
	})
}

// MoveDisk unplugs a disk from one node and plugs it into another, with what is on
// it.
func (c *Cluster) MoveDisk(ctx context.Context, from, serial, to string) error {
	disk, err := c.disk(from, serial)
	if err != nil {
		return err
	}
	if _, err := c.node(to); err != nil {
		return err
	}
	if err := c.RemoveDisk(ctx, from, serial); err != nil {
		return err
	}
	if err := os.Rename(c.ImagePath(from, disk), filepath.Join(c.nodeDir(to), disk.Image)); err != nil {
		return fmt.Errorf("move disk %s: %w", serial, err)
	}
	return c.AddDisk(ctx, to, disk)
}

// WarnDisk sets the bits of the critical warning in the health log of a running
// node's NVMe disk, until it is unplugged or the node loses its power.
func (c *Cluster) WarnDisk(ctx context.Context, node, serial string, bits uint8) error {
	disk, err := c.disk(node, serial)
	if err != nil {
		return err
	}
	return c.withMonitor(ctx, node, func(m *guest.Monitor) error { return m.WarnDisk(disk, bits) })
}

// disk finds a disk of a node.
func (c *Cluster) disk(node, serial string) (guest.Disk, error) {
	disks, err := c.Disks(node)
	if err != nil {
		return guest.Disk{}, err
	}
	at := slices.IndexFunc(disks, func(d guest.Disk) bool { return d.Serial == serial })
	if at < 0 {
		return guest.Disk{}, fmt.Errorf("%s of %s: %w", serial, node, ErrUnknownDisk)
	}
	return disks[at], nil
}

// withMonitor calls f with the node's monitor if the node runs.
func (c *Cluster) withMonitor(ctx context.Context, node string, f func(*guest.Monitor) error) error {
	running, err := c.running(node)
	if err != nil || running == nil {
		return err
	}
	monitor, err := guest.OpenMonitor(ctx, c.nodeDir(node))
	if err == nil {
		err = errors.Join(f(monitor), monitor.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	return nil
}

// ForeignDigest is the state of one foreign disk.
type ForeignDigest struct {
	Node   string
	Serial string
	// SHA256 is that of every byte of the disk, read from its image.
	SHA256 string
	// Unchanged tells whether it is as it was when the testbed started.
	Unchanged bool
}

// ForeignDigests reads every foreign disk of every node from outside. Nodes
// that run are asked to write out what they hold first, so that a write which
// still sits in a node's memory shows too.
func (c *Cluster) ForeignDigests(ctx context.Context) ([]ForeignDigest, error) {
	var digests []ForeignDigest
	for _, node := range c.state.Nodes {
		if on, err := c.PoweredOn(node.Name); err != nil {
			return nil, err
		} else if on {
			if result, err := c.Exec(ctx, node.Name, "sync"); err != nil || result.ExitCode != 0 {
				return nil, fmt.Errorf("sync on %s: status %d: %w", node.Name, result.ExitCode, err)
			}
		}
		for _, foreign := range nodeimage.ForeignDisks {
			serial := foreign.Serial(fmt.Sprintf("N%d", node.Number))
			sum, err := digest(filepath.Join(c.nodeDir(node.Name), imageName(serial)))
			if err != nil {
				return nil, err
			}
			digests = append(digests, ForeignDigest{Node: node.Name, Serial: serial, SHA256: sum, Unchanged: sum == c.state.Foreign[foreign.Name]})
		}
	}
	return digests, nil
}

// foreignBaseline computes the digests of the foreign disks that every node
// gets.
func foreignBaseline(imageDir string) (map[string]string, error) {
	sums := map[string]string{}
	for _, foreign := range nodeimage.ForeignDisks {
		sum, err := digest(filepath.Join(imageDir, foreign.Image()))
		if err != nil {
			return nil, err
		}
		sums[foreign.Name] = sum
	}
	return sums, nil
}

// digest returns the SHA-256 of a file in hexadecimal.
func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// copySparse copies an image and leaves its holes holes.
func copySparse(ctx context.Context, source, target string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", source, target).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", source, err, out)
	}
	return nil
}

// RemovedDisks lists the serials of disks that were removed from a node and can
// be added again.
func (c *Cluster) RemovedDisks(node string) ([]string, error) {
	disks, err := c.Disks(node)
	if err != nil {
		return nil, err
	}
	attached := map[string]bool{}
	for _, disk := range disks {
		attached[disk.Image] = true
	}
	images, err := filepath.Glob(filepath.Join(c.nodeDir(node), "*.img"))
	if err != nil {
		return nil, err
	}
	var serials []string
	for _, image := range images {
		if name := filepath.Base(image); !attached[name] {
			serials = append(serials, strings.ToUpper(strings.TrimSuffix(name, ".img")))
		}
	}
	sort.Strings(serials)
	return serials, nil
}
