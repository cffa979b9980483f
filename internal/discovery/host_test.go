// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/hostexec"
)

// fakeHost is a tree of files that looks like the parts of a host that discovery
// reads. Its disks are virtio disks.
type fakeHost struct {
	t    testing.TB
	root string
}

func newFakeHost(t testing.TB) *fakeHost {
	h := &fakeHost{t: t, root: t.TempDir()}
	h.write("proc/1/mountinfo", "")
	h.write("proc/swaps", "Filename Type Size Used Priority\n")
	h.mkdir("sys/class/block")
	h.mkdir("dev")
	return h
}

func (h *fakeHost) write(path, content string) {
	h.t.Helper()
	path = filepath.Join(h.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) mkdir(path string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.root, path), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// addDisk shows a virtio disk under a kernel name. number is its minor number.
func (h *fakeHost) addDisk(name, serial string, number int, sizeBytes int64) {
	h.t.Helper()
	directory := fmt.Sprintf("sys/devices/pci0000:00/virtio%d/block/%s", number, name)
	for file, content := range map[string]string{
		"dev": fmt.Sprintf("254:%d", number), "size": fmt.Sprint(sizeBytes / 512), "ro": "0", "removable": "0", "hidden": "0",
		"serial": serial, "queue/rotational": "0", "queue/logical_block_size": "512", "queue/physical_block_size": "4096",
		"queue/zoned": "none", "diskseq": fmt.Sprint(100 + number),
	} {
		h.write(directory+"/"+file, content+"\n")
	}
	h.mkdir(directory + "/holders")
	h.mkdir(directory + "/slaves")
	link := filepath.Join(h.root, "sys/class/block", name)
	_ = os.Remove(link)
	if err := os.Symlink("../../"+strings.TrimPrefix(directory, "sys/"), link); err != nil {
		h.t.Fatal(err)
	}
}

// addLogicalVolume shows a logical volume that stands on a disk.
func (h *fakeHost) addLogicalVolume(name, dmName, disk string, number int) {
	h.t.Helper()
	directory := "sys/devices/virtual/block/" + name
	for file, content := range map[string]string{
		"dev": fmt.Sprintf("253:%d", number), "size": "2048", "ro": "0", "hidden": "0",
		"dm/name": dmName, "dm/uuid": "LVM-" + dmName,
	} {
		h.write(directory+"/"+file, content+"\n")
	}
	h.mkdir(directory + "/holders")
	h.mkdir(directory + "/slaves/" + disk)
	h.mkdir("sys/class/block/" + disk + "/holders/" + name)
	if err := os.Symlink("../../"+strings.TrimPrefix(directory, "sys/"), filepath.Join(h.root, "sys/class/block", name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) removeDisk(name string) {
	h.t.Helper()
	link := filepath.Join(h.root, "sys/class/block", name)
	target, err := filepath.EvalSymlinks(link)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.Remove(link); err != nil {
		h.t.Fatal(err)
	}
	if err := os.RemoveAll(target); err != nil {
		h.t.Fatal(err)
	}
}

// noRunner is a host without programs: what is not blank stays unnamed.
type noRunner struct{}

func (noRunner) Run(context.Context, hostexec.Command) (hostexec.Result, error) {
	return hostexec.Result{}, fmt.Errorf("no programs here")
}

// recorder keeps Events.
type recorder struct {
	mu    sync.Mutex
	notes []string
}

func (r *recorder) Eventf(_, _ runtime.Object, _, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, reason+": "+fmt.Sprintf(note, args...))
}

func (r *recorder) has(words ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, note := range r.notes {
		all := true
		for _, word := range words {
			all = all && strings.Contains(note, word)
		}
		if all {
			return true
		}
	}
	return false
}

var _ events.EventRecorder = (*recorder)(nil)

const testNode = "node1"

func newFakeClient(t testing.TB, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithIndex(&v1alpha1.BlockDevice{}, NodeNameField, func(o client.Object) []string {
			return []string{o.(*v1alpha1.BlockDevice).Spec.NodeName}
		}).Build()
}

// testInventory is an inventory over a fake host whose disks are examined by
// content, all blank unless told otherwise.
type testInventory struct {
	*Inventory
	host     *fakeHost
	client   client.WithWatch
	recorder *recorder
}

func newTestInventory(t testing.TB, host *fakeHost, c client.WithWatch) *testInventory {
	t.Helper()
	rec := &recorder{}
	inv, err := New(Options{
		NodeName: testNode, MachineID: "machine-1", Namespace: "berth-system", HostRoot: host.root,
		Client: c, Reader: c, Recorder: rec, Runner: noRunner{}, Log: testLogger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	inv.examiner.content = func(context.Context, *block.Device) *examination { return &examination{blank: true} }
	return &testInventory{Inventory: inv, host: host, client: c, recorder: rec}
}

// testLogger is silent in benchmarks.
func testLogger(t testing.TB) logr.Logger {
	if tt, ok := t.(*testing.T); ok {
		return testr.New(tt)
	}
	return logr.Discard()
}

// start loads the objects, takes the default filters and walks once, without a
// watcher and without workers; settle does the rest.
func (inv *testInventory) start(t testing.TB) {
	t.Helper()
	if err := inv.loadObjects(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := inv.SetConfig(config(DefaultFilters)); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	close(inv.ready)
}

// walk looks at all devices and brings all objects up to date.
func (inv *testInventory) walk(t testing.TB) {
	t.Helper()
	if _, err := inv.rescan(t.Context()); err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
}

// settleAll judges every disk until nothing is left to be done at once.
func (inv *testInventory) settleAll(t testing.TB) {
	t.Helper()
	inv.mu.Lock()
	var names []string
	for name, d := range inv.disks {
		names = append(names, name)
		d.lastWrite, d.examined = time.Time{}, time.Time{}
	}
	inv.mu.Unlock()
	for _, name := range names {
		if _, err := inv.reconcile(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// hold claims a disk for the LocalVolume pvc of UID u.
func (inv *testInventory) hold(t testing.TB, name string) {
	t.Helper()
	if _, err := inv.Claim(t.Context(), name, device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
}

func (inv *testInventory) get(t testing.TB, name string) *v1alpha1.BlockDevice {
	t.Helper()
	bd := &v1alpha1.BlockDevice{}
	if err := inv.client.Get(t.Context(), key(name), bd); err != nil {
		t.Fatal(err)
	}
	return bd
}

// nameOf is the object's name of the disk with a serial number.
func nameOf(serial string) string {
	return block.Name(testNode, block.Identity{Scheme: block.SchemeSerial, Value: serial})
}

func config(filters string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: v1alpha1.ConfigMapName},
		Data:       map[string]string{ConfigKey: filters},
	}
}

func usable(bd *v1alpha1.BlockDevice) (reason, message string) {
	c := condition(&bd.Status)
	if c == nil {
		return "", ""
	}
	return c.Reason, c.Message
}

func mustQuantity(s string) *resource.Quantity {
	q := resource.MustParse(s)
	return &q
}
