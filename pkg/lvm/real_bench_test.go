// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// What one volume and a burst cost beside lvm's own commands.
func BenchmarkKernel(b *testing.B) {
	const burst = 100
	r := newRig(b)
	be := r.backend(b, 0)
	if _, err := be.Capacity(b.Context()); err != nil {
		b.Fatal(err)
	}
	many := func(b *testing.B, f func(n int) error) {
		b.Helper()
		var wg sync.WaitGroup
		for n := range burst {
			wg.Go(func() {
				if err := f(n); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	b.Run("create one", func(b *testing.B) {
		for i := range b.N {
			if _, err := be.Create(b.Context(), spec(1000+i, 4*mib)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("delete one", func(b *testing.B) {
		b.StopTimer()
		for i := range b.N {
			if _, err := be.Create(b.Context(), spec(1000+i, 4*mib)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		for i := range b.N {
			if err := be.Delete(b.Context(), id(1000+i), nil, volume.WipeNone); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("lvcreate one", func(b *testing.B) {
		for i := range b.N {
			r.lvm(b, "lvcreate", "--yes", "--extents", "1", "--name", fmt.Sprintf("bare-%d", i), r.group.Name)
		}
		b.StopTimer()
		r.lvm(b, "lvremove", "--yes", r.group.Name)
	})
	b.Run("create 100 at once", func(b *testing.B) {
		for range b.N {
			before := r.processes.Load()
			many(b, func(n int) error { _, err := be.Create(b.Context(), spec(n, 4*mib)); return err })
			b.ReportMetric(float64(r.processes.Load()-before)/burst, "processes/volume")
			b.StopTimer()
			many(b, func(n int) error { return be.Delete(b.Context(), id(n), nil, volume.WipeNone) })
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N*burst), "ms/volume")
	})
	b.Run("delete 100 at once", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			many(b, func(n int) error { _, err := be.Create(b.Context(), spec(n, 4*mib)); return err })
			before := r.processes.Load()
			b.StartTimer()
			many(b, func(n int) error { return be.Delete(b.Context(), id(n), nil, volume.WipeNone) })
			b.ReportMetric(float64(r.processes.Load()-before)/burst, "processes/volume")
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N*burst), "ms/volume")
	})
	b.Run("lvcreate 100 in a loop", func(b *testing.B) {
		for range b.N {
			for n := range burst {
				r.lvm(b, "lvcreate", "--yes", "--extents", "1", "--name", fmt.Sprintf("bare-%d", n), r.group.Name)
			}
			b.StopTimer()
			r.lvm(b, "lvremove", "--yes", r.group.Name)
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N*burst), "ms/volume")
	})
	b.Run("lvremove 100 in a loop", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			many(b, func(n int) error { _, err := be.Create(b.Context(), spec(n, 4*mib)); return err })
			b.StartTimer()
			for n := range burst {
				r.lvm(b, "lvremove", "--yes", r.group.Name+"/"+id(n))
			}
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N*burst), "ms/volume")
	})
}
