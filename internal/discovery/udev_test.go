// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
)

const sasWWN = "naa.5000c500a1b2c3d4"

// addSASDisk shows a disk of which the kernel knows the WWN and not the serial number: it has no
// page 80h.
func (h *fakeHost) addSASDisk(name string, number int) {
	h.t.Helper()
	directory := fmt.Sprintf("sys/devices/pci0000:00/host0/port-0:%d/end_device-0:%d/target0:0:%d/0:0:%d:0/block/%s", number, number, number, number, name)
	for file, content := range map[string]string{
		"dev": fmt.Sprintf("8:%d", number), "size": "2097152", "ro": "0", "removable": "0", "hidden": "0",
		"device/vendor": "SEAGATE", "device/model": "ST1200MM0099", "device/wwid": sasWWN, "queue/rotational": "1",
		"queue/logical_block_size": "512", "queue/physical_block_size": "4096", "queue/zoned": "none", "diskseq": fmt.Sprint(200 + number),
	} {
		h.write(directory+"/"+file, content+"\n")
	}
	h.mkdir(directory + "/holders")
	h.mkdir(directory + "/slaves")
	if err := os.Symlink("../../"+strings.TrimPrefix(directory, "sys/"), filepath.Join(h.root, "sys/class/block", name)); err != nil {
		h.t.Fatal(err)
	}
}

// finishUdev writes what udev knows of it.
func (h *fakeHost) finishUdev(number int, serial string) {
	h.t.Helper()
	h.write(fmt.Sprintf("run/udev/data/b8:%d", number), fmt.Sprintf("S:disk/by-diskseq/%d\nI:1234\nE:ID_SCSI_SERIAL=%s\n", 200+number, serial))
}

// The names of that disk before udev has finished with it, and after.
var (
	sasName        = block.Name(testNode, block.Identity{Scheme: block.SchemeWWN, Value: sasWWN + "_WFK0ABCD"})
	sasNameTooSoon = block.Name(testNode, block.Identity{Scheme: block.SchemeWWN, Value: sasWWN})
)

// waited lets all that waits for udev have waited for so long.
func (inv *testInventory) waited(long time.Duration) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	for name, seen := range inv.seen {
		inv.seen[name] = seen.Add(-long)
	}
}

func (inv *testInventory) has(t *testing.T, name string) bool {
	t.Helper()
	err := inv.client.Get(t.Context(), key(name), &v1alpha1.BlockDevice{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func (inv *testInventory) event(t *testing.T, kernelName string) (again time.Duration) {
	t.Helper()
	again, err := inv.refresh(t.Context(), map[string]bool{kernelName: true})
	if err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	return again
}

// However long udev takes, a disk has one name: the one that it has when udev has finished.
func TestADiskHasOneName(t *testing.T) {
	t.Parallel()
	for name, came := range map[string]func(inv *testInventory, t *testing.T) (again time.Duration){
		"plugged in":         func(inv *testInventory, t *testing.T) time.Duration { return inv.event(t, "sda") },
		"found by a rescan":  (*testInventory).rescanned,
		"there at the start": (*testInventory).rescanned,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			host.mkdir("run/udev/data")
			host.write("run/udev/control", "")
			inv := newTestInventory(t, host, newFakeClient(t))
			if name == "there at the start" {
				host.addSASDisk("sda", 1)
				inv.start(t)
			} else {
				inv.start(t)
				host.addSASDisk("sda", 1)
			}
			if again := came(inv, t); again <= 0 {
				t.Error("nobody comes back for it")
			}
			inv.waited(time.Hour)
			if again := inv.event(t, "sda"); again != udevRetry || !inv.unsettled()["sda"] {
				t.Errorf("after an hour it is looked at again after %s", again)
			}
			host.finishUdev(1, "WFK0ABCD")
			if again := inv.event(t, "sda"); again != 0 || !inv.has(t, sasName) {
				t.Errorf("udev has finished: it is looked at again after %s, and has its object: %t", again, inv.has(t, sasName))
			}
			if inv.has(t, sasNameTooSoon) {
				t.Error("it was shown under another name before")
			}
		})
	}
}

func (inv *testInventory) rescanned(t *testing.T) time.Duration {
	t.Helper()
	again, err := inv.rescan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	return again
}

// A disk is shown under the name that udev would change where no udev runs, and where somebody
// has claimed it by that.
func TestADiskThatUdevDoesNotFinish(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.mkdir("run/udev/data")
	host.addSASDisk("sda", 1)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	if !inv.has(t, sasNameTooSoon) {
		t.Fatal("it is not shown where no udev runs")
	}
	host.write("run/udev/control", "")
	if inv.event(t, "sda"); len(inv.index[sasNameTooSoon]) > 0 {
		t.Fatal("it is shown while udev may give it another name")
	}
	if err := os.Remove(filepath.Join(host.root, "run/udev/control")); err != nil {
		t.Fatal(err)
	}
	inv.event(t, "sda")
	if _, err := inv.Claim(t.Context(), sasNameTooSoon, device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	host.write("run/udev/control", "")
	if inv.event(t, "sda"); len(inv.index[sasNameTooSoon]) != 1 {
		t.Error("a disk that is claimed by that name is not shown")
	}
}

// A disk that came before a rescan, and waits for udev, is not forgotten by it.
func TestARescanComesBackForWhatWaits(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.mkdir("run/udev/data")
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	if again := inv.event(t, "vdb"); again <= 0 || inv.has(t, nameOf("A")) {
		t.Fatalf("it waits for udev: again after %s", again)
	}
	if again := inv.rescanned(t); again <= 0 {
		t.Error("after a rescan nobody comes back for it")
	}
	// A disk in the place of another one waits for itself.
	inv.waited(time.Hour)
	if again := inv.rescanned(t); again != 0 || !inv.has(t, nameOf("A")) {
		t.Errorf("an hour later: again after %s, shown: %t", again, inv.has(t, nameOf("A")))
	}
	host.removeDisk("vdb")
	host.addDisk("vdb", "B", 17, 1<<30)
	if again := inv.rescanned(t); again <= 0 || inv.has(t, nameOf("B")) {
		t.Errorf("the disk that took its place: again after %s, shown: %t", again, inv.has(t, nameOf("B")))
	}
}
