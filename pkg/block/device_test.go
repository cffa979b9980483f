// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

func TestController(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/devices/pci0000:00/0000:00:1f.2/ata4/host3/target3:0:0/3:0:0:0/block/sda":              "0000:00:1f.2",
		"/devices/pci0000:00/0000:00:01.1/0000:02:00.0/nvme/nvme0/nvme0n1":                       "0000:02:00.0",
		"/devices/pci0000:64/0000:64:00.5/pci10000:00/10000:00:02.0/10000:01:00.0/nvme/nvme1/n1": "10000:01:00.0", // Intel VMD
		"/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb":                                     "0000:00:05.0",
		"/devices/platform/soc/fe340000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0":               "",
		"/devices/virtual/block/loop0":                                                           "",
		"":                                                                                       "",
	} {
		if got := (&block.Device{SysfsPath: path}).Controller(); got != want {
			t.Errorf("Controller of %q = %q, want %q", path, got, want)
		}
	}
}
