// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// The real lvm moves a volume off a disk while it is written to. The disks of the layout and
// one more are needed.
func TestKernelEvacuate(t *testing.T) { evacuateOnKernel(t, lvm.LayoutLinear, false, false) }

func TestKernelEvacuateThin(t *testing.T) { evacuateOnKernel(t, lvm.LayoutLinear, true, false) }

func TestKernelEvacuateMirror(t *testing.T) { evacuateOnKernel(t, lvm.LayoutMirror, false, false) }

func TestKernelEvacuateRAID5(t *testing.T) { evacuateOnKernel(t, lvm.LayoutRAID5, false, false) }

func TestKernelEvacuateThinMirror(t *testing.T) { evacuateOnKernel(t, lvm.LayoutMirror, true, false) }

// lvm is killed in random moments, again and again.
func TestKernelEvacuateKilled(t *testing.T) { evacuateOnKernel(t, lvm.LayoutLinear, false, true) }

func TestKernelEvacuateKilledThin(t *testing.T) { evacuateOnKernel(t, lvm.LayoutLinear, true, true) }

func TestKernelEvacuateKilledMirror(t *testing.T) {
	evacuateOnKernel(t, lvm.LayoutMirror, false, true)
}

// killAtRandom gives one of two processes a time that may be too short, until the context ends.
func (r *rig) killAtRandom(ctx context.Context) {
	for tick := time.Tick(200 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			r.timeout.Store(0)
			return
		case <-tick:
			r.timeout.Store(int64(mathrand.IntN(2)) * int64(time.Millisecond+mathrand.N(2*time.Second)))
		}
	}
}

// laidOut is what lvm says of where everything lies, for a person.
func laidOut(group string) string {
	var all strings.Builder
	for _, command := range [][]string{
		{"pvs", "--all", "-o", "pv_name,vg_name,pv_attr,pv_size,pv_free,pv_uuid,pv_tags"},
		{"pvs", "--segments", "-o", "pv_name,pvseg_start,pvseg_size,lv_name,lv_parent,lv_role,segtype"},
		{"lvs", "--all", "-o", "name,attr,segtype,devices,copy_percent,tags", group},
		{"dmsetup", "info", "--columns"},
		{"dmsetup", "table"},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		fmt.Fprintf(&all, "%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return all.String()
}

func evacuateOnKernel(t *testing.T, layout lvm.Layout, thin, killed bool) {
	disks := testDisks()
	r := newRigOf(t, layout)
	if len(disks) <= len(r.disks) {
		t.Skipf("needs a disk more: %v", disks)
	}
	r.thin = thin
	b := r.tend(t, r.backend(t, 0))
	rec, err := b.Create(t.Context(), spec(1, 64*mib))
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	// The first half stays as it is, the second is written to all the time.
	half := make([]byte, 32*mib)
	_, _ = rand.Read(half)
	f, err := os.OpenFile(loc.Device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteAt(half, 0); err != nil {
		t.Fatal(err)
	}
	stop, written := make(chan struct{}), make(chan byte)
	go func() {
		last, block := byte(0), make([]byte, mib)
		defer func() { written <- last }()
		for n := byte(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for i := range block {
				block[i] = n
			}
			for at := int64(32); at < 64; at++ {
				if _, err := f.WriteAt(block, at*mib); err != nil {
					t.Error(err)
					return
				}
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
				return
			}
			last = n
		}
	}()

	// Before the disk more is there: striped and raid volumes lie on all disks that there are, and have no place to go to then.
	for n := 2; n < 8; n++ {
		if _, err := b.Create(t.Context(), spec(n, 8*mib)); err != nil {
			t.Fatal(err)
		}
	}

	empty := r.disks[0]
	extra := disks[len(r.disks)]
	client := lvm.NewClient(r.host, lvm.DiskFlusher("/"))
	if _, err := client.ExtendGroup(t.Context(), r.group.UUID, lvm.GroupSpec{
		Name: r.group.Name, PoolUID: realUID, PoolSet: "test", Devices: []string{extra},
	}); err != nil {
		t.Fatal(err)
	}
	r.disks = append(r.disks, extra)
	t.Cleanup(func() {
		if out, err := exec.Command("pvremove", "--yes", empty).CombinedOutput(); err != nil {
			t.Errorf("pvremove: %v: %s", err, out)
		}
	})

	killing, mercy := context.WithCancel(t.Context())
	defer mercy()
	if killed {
		r.timeout.Store(int64(time.Millisecond)) // the first one at least
		go r.killAtRandom(killing)
	}
	kills, moving, said := 0, 0, ""
	for deadline := time.Now().Add(10 * time.Minute); ; {
		states, err := b.Evacuate(t.Context(), lvm.EvacuateOptions{Empty: []string{empty}})
		switch {
		case !killed && (err != nil || states[0].Waiting != ""):
			t.Fatalf("got %+v, %v", states, err)
		case err != nil || states[0].Waiting != "":
			kills++
			if why := fmt.Sprint(states, err); why != said {
				t.Log(why)
				said = why
			}
			if mathrand.IntN(2) == 0 {
				r.boot.Add(1)
				b = r.backend(t, 0)
			}
		case states[0].Out:
			goto out
		case states[0].Moving:
			moving++
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to the end: %+v, %v\n%s", states, err, laidOut(r.group.Name))
		}
		<-time.After(100 * time.Millisecond)
	}
out:
	mercy()
	close(stop)
	last := <-written
	t.Logf("%d looks while it was copied, %d calls failed", moving, kills)
	if killed && kills == 0 {
		t.Error("nothing was killed")
	}
	got := make([]byte, 64*mib)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got[:32*mib]) != sha256.Sum256(half) {
		t.Error("what was there is another")
	}
	if want := bytes.Repeat([]byte{last}, 32*mib); !bytes.Equal(got[32*mib:], want) {
		t.Errorf("what was written meanwhile is not %d", last)
	}
	r.disks = r.disks[1:]
	if out, err := exec.Command("lvs", "-a", "--noheadings", "-o", "name", r.group.Name).CombinedOutput(); err != nil || strings.Contains(string(out), "pvmove") {
		t.Errorf("left over: %s, %v", out, err)
	}
	if out, err := exec.Command("dmsetup", "ls").CombinedOutput(); err != nil || strings.Contains(string(out), "pvmove") {
		t.Errorf("left over: %s, %v", out, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.timeout.Store(0)
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeSignatures); err != nil {
		t.Error(err)
	}
}
