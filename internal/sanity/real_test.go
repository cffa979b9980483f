// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// testDiskEnv names disks that may be destroyed, with commas between: then the suite also
// runs over the real lvm and the real kernel, with a volume group on each disk.
//
//	go test -c ./internal/sanity && BERTH_TEST_DISK=/dev/vdX,/dev/vdY ./sanity.test
//
// run as root on a node. Everything else on the node stays as it is.
const testDiskEnv = "BERTH_TEST_DISK"

// realModes are those for which there are disks.
func realModes() []mode {
	limits := map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"}
	disks := strings.FieldsFunc(os.Getenv(testDiskEnv), func(r rune) bool { return r == ',' })
	var found []mode
	for i, m := range []mode{
		{name: "lvm on a disk", accessType: "mount"},
		{name: "thin on a disk", accessType: "mount"},
		{name: "lvm on a disk, block", accessType: "block"},
		{name: "thin on a disk, block", accessType: "block"},
	} {
		if i == len(disks) {
			break
		}
		thin := strings.HasPrefix(m.name, "thin")
		m.place = func(t *testing.T) place { return diskPlace(t, i, disks[i], thin) }
		m.limits, m.sizeBytes, m.expandBytes = limits, 64*mib, 128*mib
		m.parameters = map[string]string{"mode": "lvm", "pool": poolName}
		if m.accessType == "mount" {
			m.parameters["csi.storage.k8s.io/fstype"] = "ext4"
		}
		found = append(found, m)
	}
	return found
}

// diskPlace is a volume group of the real lvm.
func diskPlace(t *testing.T, number int, disk string, thin bool) place {
	t.Helper()
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	driver := lvm.NewClient(host, lvm.DiskFlusher("/"))
	poolUID := fmt.Sprintf("5a000000-0000-4000-8000-%012d", number)
	devices := []string{disk}
	g, err := driver.CreateGroup(t.Context(), lvm.GroupSpec{Name: fmt.Sprintf("berth-sanity-%d", number), PoolUID: poolUID, Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.RemoveGroup(context.Background(), g.UUID, poolUID, devices); err != nil {
			t.Error(err)
		}
	})
	options := lvm.Options{GroupName: g.Name, GroupUUID: g.UUID, Devices: func() []string { return devices }}
	if thin {
		options.Thin = func() lvm.ThinPolicy {
			return lvm.ThinPolicy{OverprovisionPercent: 200, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
		}
	}
	b, err := lvm.NewBackend(driver, options)
	if err == nil && thin {
		_, err = b.Tend(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return place{
		mode: volume.ModeLVM, backend: b, objects: []client.Object{readyPool(berth.PoolLVM, c.FreeBytes)},
		settled: b.Sweep, snapshots: true, groups: thin,
	}
}
