// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"slices"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const plainMount = "36 1 254:16 / /mnt/disks/a rw - ext4 /dev/vdb rw\n"

// twoDisks is a node with two blank disks, ONE (/dev/vdb) and TWO.
func twoDisks(t *testing.T) (*fakeHost, *testInventory) {
	t.Helper()
	host := newFakeHost(t)
	host.addDisk("vdb", "ONE", 16, 1<<30)
	host.addDisk("vdc", "TWO", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	return host, inv
}

// drain takes the disks that are to be judged anew out of the queue.
func (inv *testInventory) drain() (names []string) {
	for inv.queue.Len() > 0 {
		name, _ := inv.queue.Get()
		names = append(names, name)
		inv.queue.Done(name)
	}
	return names
}

// Whoever reads the tables in between, for another disk, must not swallow the news.
func TestMountsAreNotSwallowed(t *testing.T) {
	t.Parallel()
	host, inv := twoDisks(t)
	if err := inv.refreshUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	inv.drain()

	host.write("proc/1/mountinfo", plainMount)
	inv.mu.Lock()
	inv.uses = nil // as after some time
	inv.mu.Unlock()
	if _, err := inv.reconcile(t.Context(), nameOf("TWO")); err != nil {
		t.Fatal(err)
	}
	if err := inv.refreshUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := inv.drain(); !slices.Equal(names, []string{nameOf("ONE")}) {
		t.Errorf("judged anew: %v, want the one that was mounted", names)
	}
}

// Nobody sends an event for a mount: the table tells.
func TestMountsAreFollowed(t *testing.T) {
	t.Parallel()
	host, inv := twoDisks(t)

	// queued is what is judged anew after the tables have changed.
	queued := func() (names []string) {
		t.Helper()
		inv.drain()
		if err := inv.refreshUses(t.Context()); err != nil {
			t.Fatal(err)
		}
		names = inv.drain()
		inv.settleAll(t)
		return names
	}
	one := []string{nameOf("ONE")}
	steps := []struct {
		name, mounts, swaps string
		queued              []string
		reason, message     string
	}{
		{"nothing", "", "", nil, v1alpha1.ReasonBlank, "blank"},
		{"mounted", plainMount, "", one, v1alpha1.ReasonInUse, "mounted at /mnt/disks/a"},
		{
			"shown to a pod", plainMount + "37 1 254:16 / /var/lib/kubelet/pods/6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11/volumes/kubernetes.io~local-volume/pv rw - ext4 /dev/vdb rw\n",
			"", nil, v1alpha1.ReasonInUse, "mounted at /mnt/disks/a",
		},
		{"unmounted", "", "", one, v1alpha1.ReasonBlank, "blank"},
		{"made swap", "", "/dev/vdb partition 1 0 -2\n", one, v1alpha1.ReasonInUse, "in use as swap"},
		{"no swap any more", "", "", one, v1alpha1.ReasonBlank, "blank"},
		{
			"mounted for a pod alone", "37 1 254:16 / /var/lib/kubelet/pods/6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11/volumes/x/y rw - ext4 /dev/vdb rw\n", "", one,
			v1alpha1.ReasonInUse, "mounted at /var/lib/kubelet/pods/6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11/volumes/x/y",
		},
	}
	host.write("dev/vdb", "") // the swap table names it by its path
	queued()
	for _, step := range steps {
		host.write("proc/1/mountinfo", step.mounts)
		host.write("proc/swaps", "Filename Type Size Used Priority\n"+step.swaps)
		if names := queued(); !slices.Equal(names, step.queued) {
			t.Errorf("%s: judged anew: %v, want %v", step.name, names, step.queued)
		}
		if reason, message := usable(inv.get(t, nameOf("ONE"))); reason != step.reason || message != step.message {
			t.Errorf("%s: %s: %s, want %s: %s", step.name, reason, message, step.reason, step.message)
		}
	}
}
