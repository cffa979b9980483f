// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/pkg/block"
)

// thousand is a host with 1,000 disks.
func thousand(b *testing.B) *fakeHost {
	host := newFakeHost(b)
	for i := range 1000 {
		host.addDisk(fmt.Sprintf("vd%03d", i), fmt.Sprintf("SERIAL-%d", i), i, 1<<30)
	}
	return host
}

// newThousand is an inventory whose API server looks for disks on other nodes by
// itself, as a real one does; the fake one copies all objects for that.
func newThousand(b *testing.B, host *fakeHost) *testInventory {
	inv := newTestInventory(b, host, newFakeClient(b))
	inv.opts.Reader = nowhereElse{inv.opts.Reader}
	return inv
}

type nowhereElse struct{ client.Reader }

func (n nowhereElse) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	for _, opt := range opts {
		if _, byLabel := opt.(client.MatchingLabels); byLabel {
			return nil
		}
	}
	return n.Reader.List(ctx, list, opts...)
}

// BenchmarkFirstScan walks, judges and publishes a node with 1,000 disks.
func BenchmarkFirstScan(b *testing.B) {
	host := thousand(b)
	for b.Loop() {
		b.StopTimer()
		inv := newThousand(b, host)
		b.StartTimer()
		inv.start(b)
	}
}

// BenchmarkLsblk is what lsblk takes to show the same 1,000 disks with all that it
// knows: what the first scan is measured against. It reads the tree in place of /sys, in
// a mount namespace of its own.
func BenchmarkLsblk(b *testing.B) {
	host := thousand(b)
	host.mkdir("sys/block")
	host.mkdir("sys/dev/block")
	for i := range 1000 {
		name := fmt.Sprintf("vd%03d", i)
		target, err := os.Readlink(filepath.Join(host.root, "sys/class/block", name))
		if err != nil {
			b.Fatal(err)
		}
		target = strings.TrimPrefix(target, "../../")
		for link, to := range map[string]string{
			"sys/block/" + name: "../" + target, fmt.Sprintf("sys/dev/block/254:%d", i): "../../" + target, "sys/" + target + "/subsystem": "../../../../../class/block",
		} {
			if err := os.Symlink(to, filepath.Join(host.root, link)); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		out, err := exec.CommandContext(b.Context(), "unshare", "--mount", "sh", "-c", `mount --bind "$0" /sys && lsblk --json --output-all`,
			filepath.Join(host.root, "sys")).Output()
		if err != nil {
			b.Skipf("lsblk needs root and a mount namespace: %v", err)
		}
		if seen := bytes.Count(out, []byte(`"kname": "vd`)); seen < 1000 {
			b.Fatalf("lsblk shows %d disks", seen)
		}
	}
}

// BenchmarkWalk reads 1,000 disks and finds no news.
func BenchmarkWalk(b *testing.B) {
	host := thousand(b)
	inv := newThousand(b, host)
	inv.start(b)
	for b.Loop() {
		inv.walk(b)
	}
}

// BenchmarkHotplug is one disk more among 1,000, from the kernel's event to its
// object.
func BenchmarkHotplug(b *testing.B) {
	host := thousand(b)
	inv := newThousand(b, host)
	inv.start(b)
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		kernelName, serial := fmt.Sprintf("vx%05d", n), fmt.Sprintf("NEW-%d", n)
		host.addDisk(kernelName, serial, 2000+n, 1<<30)
		b.StartTimer()
		if _, err := inv.refresh(b.Context(), map[string]bool{kernelName: true}); err != nil {
			b.Fatal(err)
		}
		name := block.Name(testNode, block.Identity{Scheme: block.SchemeSerial, Value: serial})
		if _, err := inv.reconcile(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
}
