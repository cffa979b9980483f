// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

// tree is a host as files: what discovery reads of sysfs, /proc, /run and /dev.
type tree struct {
	t    *testing.T
	root string
}

func newTree(t *testing.T) *tree {
	t.Helper()
	f := &tree{t: t, root: t.TempDir()}
	for _, directory := range []string{"sys/class/block", "dev", "run/udev/data"} {
		if err := os.MkdirAll(filepath.Join(f.root, directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.file("proc/1/mountinfo", "")
	return f
}

func (f *tree) sysfs() block.Sysfs {
	return block.Sysfs{Root: filepath.Join(f.root, "sys"), HostRoot: f.root}
}

func (f *tree) file(path, content string) {
	f.t.Helper()
	path = filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) link(path, target string) {
	f.t.Helper()
	path = filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		f.t.Fatal(err)
	}
}

// attributes of a device, by file name.
type attributes map[string]string

// device makes the directory of a device. devPath is without "/sys". The usual
// attributes are there unless others are given.
func (f *tree) device(devPath, number string, sizeBytes int64, attrs attributes) {
	f.t.Helper()
	name := filepath.Base(devPath)
	all := attributes{
		"dev": number, "size": fmt.Sprint(sizeBytes / 512), "ro": "0", "removable": "0", "hidden": "0", "diskseq": "9",
		"queue/rotational": "0", "queue/logical_block_size": "512", "queue/physical_block_size": "512", "queue/zoned": "none",
	}
	maps.Copy(all, attrs)
	for key, value := range all {
		if target, isLink := strings.CutPrefix(value, "-> "); isLink {
			f.link("sys"+devPath+"/"+key, target)
			continue
		}
		f.file("sys"+devPath+"/"+key, value+"\n")
	}
	f.link("sys/class/block/"+name, "../.."+devPath)
}

// partition makes the directory of a partition, which has fewer attributes.
func (f *tree) partition(devPath, number string, index int, sizeBytes int64) {
	f.t.Helper()
	for key, value := range map[string]string{
		"dev": number, "size": fmt.Sprint(sizeBytes / 512), "ro": "0", "partition": fmt.Sprint(index),
	} {
		f.file("sys"+devPath+"/"+key, value+"\n")
	}
	f.link("sys/class/block/"+filepath.Base(devPath), "../.."+devPath)
}

// stack puts one device on another.
func (f *tree) stack(upper, lower string) {
	f.t.Helper()
	for _, l := range [][3]string{{lower, "holders", upper}, {upper, "slaves", lower}} {
		target, err := os.Readlink(filepath.Join(f.root, "sys/class/block", l[0]))
		if err != nil {
			f.t.Fatal(err)
		}
		f.link(filepath.Join("sys/class/block", target, l[1], l[2]), "../"+l[2])
	}
}

// udev writes udev's record of a device and the links in it.
func (f *tree) udev(number, kernelName string, lines ...string) {
	f.t.Helper()
	f.file("run/udev/data/b"+number, strings.Join(append(lines, "I:1000", "V:1", ""), "\n"))
	for _, line := range lines {
		if link, found := strings.CutPrefix(line, "S:"); found {
			up := strings.Repeat("../", strings.Count(link, "/"))
			f.link("dev/"+link, up+kernelName)
		}
	}
}

func (f *tree) read(kernelName string) block.Device {
	f.t.Helper()
	d, err := f.sysfs().Device(f.t.Context(), kernelName)
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}
