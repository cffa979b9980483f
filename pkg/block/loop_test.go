// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// loopDevice attaches a loop device to a new sparse file and detaches it when the
// test ends.
func loopDevice(t *testing.T, sizeBytes int64, options ...string) (node, backing string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	backing = filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, sizeBytes); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", append(options, "--find", "--show", backing)...).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device to be had: %v: %s", err, out)
	}
	node = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", node).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", node, err, out)
		}
	})
	return node, backing
}

// run executes a program of the test machine and fails the test if it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestFlush(t *testing.T) {
	device, _ := loopDevice(t, 1<<20)
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("data"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(block.Flush(device), f.Close()); err != nil {
		t.Error(err)
	}
	if err := block.Flush(device + "-absent"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Flush of nothing = %v, want ErrNotFound", err)
	}
}
