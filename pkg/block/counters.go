// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Counters are how many commands a SCSI or ATA disk has not carried out since the
// kernel found it.
type Counters struct {
	// Errors are commands that ended with an error, among them harmless ones that ask
	// for what a disk does not know.
	Errors uint64
	// Timeouts are commands that the disk did not answer.
	Timeouts uint64
}

// Counters reads ioerr_cnt and iotmo_cnt (Linux, Documentation/ABI/testing/
// sysfs-block-device and drivers/scsi/scsi_sysfs.c). ok is false for a device that
// has none: only SCSI disks, to which the kernel counts ATA ones, do.
// volume.ErrNotFound: the kernel does not show the device (any more).
func (s Sysfs) Counters(ctx context.Context, kernelName string) (c Counters, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return c, false, err
	}
	reader, err := s.reader(kernelName)
	if err != nil {
		return c, false, err
	}
	for _, attribute := range []struct {
		name string
		to   *uint64
	}{{"device/ioerr_cnt", &c.Errors}, {"device/iotmo_cnt", &c.Timeouts}} {
		text := reader.text(attribute.name)
		if reader.err != nil {
			return Counters{}, false, fmt.Errorf("device %s: %w", kernelName, reader.err)
		}
		if text == "" {
			continue // iotmo_cnt is there since Linux 5.18
		}
		n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
		if err != nil {
			return Counters{}, false, fmt.Errorf("device %s: %s is %q, no number", kernelName, attribute.name, printable([]byte(text)))
		}
		*attribute.to, ok = n, true
	}
	return c, ok, nil
}
