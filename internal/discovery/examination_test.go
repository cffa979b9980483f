// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/pkg/block"
)

// A read that hangs in the kernel holds a thread and two descriptors, and cannot be ended.
// It is one, however often the disk is looked at, and another disk does not wait for it.
func TestDiskThatHangsIsReadOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		answer := make(chan struct{})
		x := newExaminer(block.Sysfs{}, block.Prober{})
		x.content = func(_ context.Context, d *block.Device) *examination {
			if d.DiskSeq == 1 {
				reads.Add(1)
				<-answer
			}
			return &examination{blank: true}
		}
		hung := &block.Device{KernelName: "sdb", Path: "/dev/sdb", DiskSeq: 1}
		for range 3 {
			began := time.Now()
			if e := x.examine(t.Context(), hung); e.err == nil || e.blank || e.retry() != unreadableRetry {
				t.Errorf("a disk that hangs: %+v", e)
			}
			if took := time.Since(began); took > examineTimeout {
				t.Errorf("it took %v", took)
			}
		}
		if n := reads.Load(); n != 1 {
			t.Errorf("%d reads hang", n)
		}
		for _, d := range []*block.Device{{KernelName: "sdc", DiskSeq: 2}, {KernelName: "sdb", DiskSeq: 3}} {
			if e := x.examine(t.Context(), d); !e.blank {
				t.Errorf("%s, disk %d: %+v", d.KernelName, d.DiskSeq, e)
			}
		}
		close(answer)
		synctest.Wait()
		if e := x.examine(t.Context(), hung); !e.blank || reads.Load() != 2 {
			t.Errorf("a disk that answers again: %+v", e)
		}
	})
}
