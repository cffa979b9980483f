// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// costsEnv lets TestKernelCosts and TestKernelDataPath measure: it is the numbers of volumes
// to measure with, with commas between ("1,100,500,1000").
const costsEnv = "BERTH_TEST_COSTS"

func costNumbers(t *testing.T) []int {
	t.Helper()
	text := os.Getenv(costsEnv)
	if text == "" {
		t.Skipf("measures only with %s", costsEnv)
	}
	var numbers []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			t.Fatalf("%s: %q is no number of volumes", costsEnv, word)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// row prints a row of the Markdown table.
func row(cells ...any) {
	var line strings.Builder
	for _, c := range cells {
		if f, ok := c.(float64); ok {
			c = strconv.FormatFloat(f, 'f', 2, 64)
		}
		fmt.Fprintf(&line, "| %v ", c)
	}
	fmt.Fprintln(os.Stdout, line.String()+"|")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func timed(t *testing.T, f func() error) float64 {
	t.Helper()
	began := time.Now()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	return float64(time.Since(began).Microseconds()) / 1000
}

// plain runs lvm as it comes, with the host's udev.
func plain(t *testing.T, args ...string) func() error {
	t.Helper()
	return func() error {
		if out, err := exec.CommandContext(t.Context(), "lvm", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("lvm %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
}

// TestKernelCosts prints what one volume costs beside what the same costs by lvm's own
// commands, in turn with it and with as many volumes in the group, and a burst of 100 beside
// a loop of them. With BERTH_TEST_COSTS only.
func TestKernelCosts(t *testing.T) {
	numbers := costNumbers(t)
	const rounds, burst = 7, 100
	for _, thin := range []bool{false, true} {
		t.Run(fmt.Sprintf("thin %v", thin), func(t *testing.T) {
			r := newRig(t)
			r.thin = thin
			b := r.tend(t, r.backend(t, 0))
			bareArgs := func(name string) []string {
				if thin {
					return []string{"lvcreate", "--quiet", "--yes", "--thinpool", "thin", "--virtualsize", "4m", "--name", name, r.group.Name}
				}
				return []string{"lvcreate", "--quiet", "--yes", "--extents", "1", "--name", name, r.group.Name}
			}
			fmt.Fprintf(os.Stdout, "\n| %s: volumes in the group | create, ms | lvcreate, ms | ratio | delete, ms | lvremove, ms | ratio | lvm processes, create / delete | made in bursts, per second |\n|---|---|---|---|---|---|---|---|---|\n",
				map[bool]string{false: "thick", true: "thin"}[thin])
			have := 0
			for _, n := range numbers {
				began, from := time.Now(), have
				for have < n {
					many := min(burst, n-have)
					r.atOnce(t, many, func(i int) error { _, err := b.Create(t.Context(), spec(100+have+i, 4*mib)); return err })
					have += many
				}
				rate := float64(n-from) / time.Since(began).Seconds()
				var create, remove, bareCreate, bareRemove []float64
				var made, gone int64
				for range rounds {
					before := r.processes.Load()
					create = append(create, timed(t, func() error { _, err := b.Create(t.Context(), spec(1, 4*mib)); return err }))
					made += r.processes.Load() - before
					before = r.processes.Load()
					remove = append(remove, timed(t, func() error { return b.Delete(t.Context(), id(1), nil, volume.WipeNone) }))
					gone += r.processes.Load() - before
					bareCreate = append(bareCreate, timed(t, plain(t, bareArgs("bare")...)))
					bareRemove = append(bareRemove, timed(t, plain(t, "lvremove", "--quiet", "--yes", r.group.Name+"/bare")))
					// What somebody else has changed is looked at first: not in the measured call.
					if _, err := b.Capacity(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				row(n, median(create), median(bareCreate), median(create)/median(bareCreate), median(remove), median(bareRemove), median(remove)/median(bareRemove),
					fmt.Sprintf("%.2f / %.2f", float64(made)/rounds, float64(gone)/rounds), rate)
			}
			r.bursts(t, b, bareArgs)
		})
	}
}

// bursts compares a burst of 100 with a loop of lvcreate, in turn.
func (r *rig) bursts(t *testing.T, b *lvm.Backend, bareArgs func(name string) []string) {
	t.Helper()
	const rounds, burst = 3, 100
	var at, loop []float64
	var processes int64
	for range rounds {
		before := r.processes.Load()
		at = append(at, timed(t, func() error {
			r.atOnce(t, burst, func(i int) error { _, err := b.Create(t.Context(), spec(90000+i, 4*mib)); return err })
			return nil
		}))
		processes += r.processes.Load() - before
		r.atOnce(t, burst, func(i int) error { return b.Delete(t.Context(), id(90000+i), nil, volume.WipeNone) })
		var names []string
		loop = append(loop, timed(t, func() error {
			for i := range burst {
				name := fmt.Sprintf("bare-%d", i)
				names = append(names, r.group.Name+"/"+name)
				if err := plain(t, bareArgs(name)...)(); err != nil {
					return err
				}
			}
			return nil
		}))
		if err := plain(t, append([]string{"lvremove", "--quiet", "--yes"}, names...)...)(); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintf(os.Stdout, "\nA burst of %d: %.0f ms, %.2f lvm processes per volume; lvcreate in a loop: %.0f ms; %.2f times as fast (medians of %d)\n",
		burst, median(at), float64(processes)/rounds/burst, median(loop), median(loop)/median(at), rounds)
}

// atOnce calls f for each of n at the same time.
func (r *rig) atOnce(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// wantBlank fails the test unless nothing is on a disk that is about to be formatted.
func wantBlank(t *testing.T, path string) {
	t.Helper()
	f, err := block.OpenExclusiveReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if _, blank, err := block.BlankOnDisk(f, size); err != nil || !blank {
		t.Fatalf("%s is not blank (%v): it is not touched", path, err)
	}
}

// TestKernelDataPath prints what fio reaches on a volume beside what it reaches on a disk of
// the same kind, in turn: the second of two disks. With BERTH_TEST_COSTS only.
func TestKernelDataPath(t *testing.T) {
	costNumbers(t)
	disks := strings.Split(os.Getenv(testDiskEnv), ",")
	if len(disks) < 2 {
		t.Skipf("needs a second disk in %s, to compare with", testDiskEnv)
	}
	raw := disks[1]
	wantBlank(t, raw)
	fmt.Fprintf(os.Stdout, "\n| fio | | on the volume | on the disk | ratio |\n|---|---|---|---|---|\n")
	for _, thin := range []bool{false, true} {
		t.Run(fmt.Sprintf("thin %v", thin), func(t *testing.T) {
			r := newRig(t)
			r.thin = thin
			b := r.tend(t, r.backend(t, 0))
			rec, err := b.Create(t.Context(), spec(1, 512*mib))
			if err != nil {
				t.Fatal(err)
			}
			loc, err := b.Locate(t.Context(), id(1), rec)
			if err != nil {
				t.Fatal(err)
			}
			kind := map[bool]string{false: "thick", true: "thin"}[thin]
			compareFio(t, kind+", block", loc.Device, raw)
			onFilesystem(t, func(volumeFile, rawFile string) { compareFio(t, kind+", ext4", volumeFile, rawFile) }, loc.Device, raw)
		})
	}
	if out, err := exec.CommandContext(t.Context(), "wipefs", "--all", raw).CombinedOutput(); err != nil {
		t.Errorf("wipefs: %v: %s", err, out)
	}
}

// onFilesystem calls f with a file on each device.
func onFilesystem(t *testing.T, f func(a, b string), devices ...string) {
	t.Helper()
	var files []string
	for _, device := range devices {
		dir := t.TempDir()
		for _, command := range [][]string{{"mkfs.ext4", "-q", "-F", device, "480M"}, {"mount", device, dir}} {
			if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", command, err, out)
			}
		}
		t.Cleanup(func() {
			if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v: %s", err, out)
			}
		})
		files = append(files, filepath.Join(dir, "data"))
	}
	f(files[0], files[1])
}

func compareFio(t *testing.T, what, ours, raw string) {
	t.Helper()
	const rounds = 5
	for _, file := range []string{ours, raw} {
		fio(t, file, "write", "1M", "--end_fsync=1") // what is not written yet is another thing
	}
	for _, job := range []struct{ rw, bs string }{{"randread", "4k"}, {"randwrite", "4k"}, {"read", "1M"}, {"write", "1M"}} {
		var on, beside, ratios []float64
		for range rounds {
			a, b := fio(t, ours, job.rw, job.bs, "--time_based", "--runtime=2"), fio(t, raw, job.rw, job.bs, "--time_based", "--runtime=2")
			on, beside, ratios = append(on, a), append(beside, b), append(ratios, a/b)
		}
		row(what, job.rw+" "+job.bs+", IOPS", median(on), median(beside), median(ratios))
	}
}

// fio returns the operations per second of a job.
func fio(t *testing.T, file, rw, bs string, more ...string) float64 {
	t.Helper()
	args := append([]string{"--name=berth", "--filename=" + file, "--direct=1", "--ioengine=psync", "--size=256M", "--rw=" + rw, "--bs=" + bs, "--output-format=json"}, more...)
	out, err := exec.CommandContext(t.Context(), "fio", args...).Output()
	if err != nil {
		t.Fatalf("fio: %v: %s", err, out)
	}
	var result struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
		t.Fatalf("fio: %v: %s", err, out)
	}
	return result.Jobs[0].Read.IOPS + result.Jobs[0].Write.IOPS
}
