// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hollow

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// host is a tree of files that looks like a host: a disk with the operating system, and two
// that others use. It has no programs.
type host struct{ root string }

// newHost makes the tree, with the directories that the agent and kubelet have there.
func newHost(root string) (*host, error) {
	h := &host{root: root}
	files := map[string]string{
		"proc/1/mountinfo": "1 0 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n",
		"proc/swaps":       "Filename Type Size Used Priority\n",
	}
	links := map[string]string{}
	disk := func(directory, name, number string, attributes map[string]string) {
		for file, content := range attributes {
			files[filepath.Join(directory, file)] = content + "\n"
		}
		files[filepath.Join(directory, "dev")] = number + "\n"
		links["sys/class/block/"+name] = "../../" + strings.TrimPrefix(directory, "sys/")
	}
	for i, name := range []string{"vda", "vdb", "vdc"} {
		directory := fmt.Sprintf("sys/devices/pci0000:00/virtio%d/block/%s", i, name)
		disk(directory, name, fmt.Sprintf("254:%d", 16*i), map[string]string{
			"size": "1953525168", "ro": "0", "removable": "0", "hidden": "0", "queue/rotational": "0",
			"queue/logical_block_size": "512", "queue/physical_block_size": "4096", "queue/zoned": "none",
			"serial": serialOf(root, name), "diskseq": fmt.Sprint(100 + i),
		})
		if name == "vda" {
			disk(directory+"/vda1", "vda1", "254:1", map[string]string{"size": "1953521664", "ro": "0", "partition": "1", "start": "2048"})
			continue
		}
		lv := fmt.Sprintf("dm-%d", i)
		disk("sys/devices/virtual/block/"+lv, lv, fmt.Sprintf("253:%d", i), map[string]string{
			"size": "1953521664", "ro": "0", "hidden": "0", "dm/name": "others-" + name, "dm/uuid": "LVM-others-" + name,
			"slaves/" + name + "/dev": fmt.Sprintf("254:%d", 16*i),
		})
		files[directory+"/holders/"+lv+"/dev"] = fmt.Sprintf("253:%d\n", i)
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(h.path(name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	for _, directory := range []string{"dev", "sys/class/block", "var/lib/berth", "plugins"} {
		if err := os.MkdirAll(h.path(directory), 0o755); err != nil {
			return nil, err
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, h.path(name)); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

// machineID is the host's, made of its place.
func (h *host) machineID() string { return digest(h.root)[:32] }

// serialOf is a disk's serial number, which no other node shows: a disk of two nodes is
// asked for again and again.
func serialOf(root, name string) string { return strings.ToUpper(digest(root + name)[:20]) }

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Run implements mount.Host.
func (h *host) Run(_ context.Context, c hostexec.Command) (hostexec.Result, error) {
	return hostexec.Result{}, fmt.Errorf("run %s: %w: a hollow node has no programs", c.Name, volume.ErrToolMissing)
}

// LookPath implements mount.Host.
func (h *host) LookPath(_ context.Context, name string) (string, error) {
	return "", fmt.Errorf("look for program %s: %w: a hollow node has no programs", name, volume.ErrToolMissing)
}

// Root implements mount.Host.
func (h *host) Root() string { return h.root }

// InMountNamespace implements mount.Host. Nothing is mounted on a hollow node.
func (h *host) InMountNamespace(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return f()
}
