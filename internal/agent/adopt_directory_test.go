// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
)

// handedDirectory is a directory with data beside the root of the node's pool.
type handedDirectory struct {
	root, dir string
	backend   volume.Backend
	holder    string
}

func newHandedDirectory(t *testing.T) *handedDirectory {
	t.Helper()
	top := t.TempDir()
	d := &handedDirectory{root: filepath.Join(top, "berth"), dir: filepath.Join(top, "pvc-1_default_data")}
	if err := os.Mkdir(d.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	where := hostpath.Where{Root: d.root}
	id, err := hostpath.Init(t.Context(), where, "pool-uid")
	if err != nil {
		t.Fatal(err)
	}
	d.backend, err = hostpath.New(hostpath.Options{
		Where: where, RootID: id, PoolUID: "pool-uid", Log: slog.New(slog.DiscardHandler),
		Holder: func(string) (string, error) { return d.holder, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// files are where the data are.
func (d *handedDirectory) files(t *testing.T) []string {
	t.Helper()
	var found []string
	err := filepath.Walk(filepath.Dir(d.root), func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Name() == "file" {
			found = append(found, path)
			if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
				t.Errorf("%s holds %q, %v", path, data, err)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func directoryHost(t *testing.T, d *handedDirectory, mutate ...func(*v1alpha1.LocalVolume)) *host {
	t.Helper()
	h := newHost(t, volume.ModeHostpath, localVolume(append([]func(*v1alpha1.LocalVolume){func(lv *v1alpha1.LocalVolume) {
		lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType, lv.Spec.Wipe = v1alpha1.ModeHostpath, "dirs", "", v1alpha1.WipeNone
		lv.Spec.Adopt = &v1alpha1.Adoption{Directory: d.dir}
	}}, mutate...)...))
	h.dirs = d.backend
	h.start()
	return h
}

func TestAdoptDirectoryKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		d := newHandedDirectory(t)
		h := directoryHost(t, d)
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.settle()
		lv := h.get()
		if !isReady(lv) || lv.Status.Hostpath == nil || lv.Status.Hostpath.Directory != "volumes/"+string(lvUID) || lv.Status.Capacity.Value() != 8*mib {
			t.Fatalf("killed at step %d: %+v", n, lv.Status)
		}
		at := filepath.Join(d.root, "volumes", string(lvUID), "file")
		if files := d.files(t); len(files) != 1 || files[0] != at {
			t.Fatalf("killed at step %d: the data are at %v", n, files)
		}
		// Whatever is lost of what Berth knew, it is the same volume.
		h.loseLedger()
		h.settle()
		h.rollBack()
		h.loseLedger()
		h.settle()
		if files := d.files(t); !isReady(h.get()) || len(files) != 1 || files[0] != at {
			t.Fatalf("killed at step %d: after a loss, the data are at %v", n, files)
		}
		h.delete()
		h.settle()
		if files := d.files(t); h.get() != nil || len(files) != 1 || !strings.HasPrefix(files[0], filepath.Join(d.root, "taken-back")+"/") {
			t.Fatalf("killed at step %d: deleted, the data are at %v", n, files)
		}
		if !died {
			if n < 4 {
				t.Errorf("only %d steps", n)
			}
			return
		}
	}
}

// A pod still has it: it is tried again soon, and nothing has happened to it.
func TestAdoptDirectoryInUse(t *testing.T) {
	t.Parallel()
	d := newHandedDirectory(t)
	d.holder = "process 7 (postgres) has it mounted at /data"
	h := directoryHost(t, d)
	req := reconcile.Request{NamespacedName: types.NamespacedName{Name: lvName}}
	result, err := h.agent.ReconcileLive(t.Context(), req)
	if err != nil || result.RequeueAfter > 10*time.Second || result.RequeueAfter == 0 {
		t.Errorf("it is looked at again in %v, %v", result.RequeueAfter, err)
	}
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable)
	if c := meta.FindStatusCondition(h.get().Status.Conditions, v1alpha1.LocalVolumeReady); !strings.Contains(c.Message, d.holder) {
		t.Errorf("message %q", c.Message)
	}
	if len(h.agent.adopting) != 0 {
		t.Errorf("it waits for a disk: %v", h.agent.adopting)
	}
	if files := d.files(t); len(files) != 1 || files[0] != filepath.Join(d.dir, "file") {
		t.Fatalf("the data are at %v", files)
	}
	d.holder = ""
	h.settle()
	if !isReady(h.get()) {
		t.Errorf("status %+v", h.get().Status)
	}
}

// Deleted before it could be had, it stays where it is.
func TestAdoptDirectoryGivenUp(t *testing.T) {
	t.Parallel()
	d := newHandedDirectory(t)
	d.holder = "process 7 (postgres) has it mounted at /data"
	h := directoryHost(t, d)
	_ = h.reconcile()
	h.delete()
	h.settle()
	if files := d.files(t); h.get() != nil || len(files) != 1 || files[0] != filepath.Join(d.dir, "file") {
		t.Fatalf("the data are at %v", files)
	}
}

// The apiserver refuses these; an agent that is asked all the same does too.
func TestAdoptDirectoryInvalid(t *testing.T) {
	t.Parallel()
	for name, mutate := range map[string]func(*v1alpha1.LocalVolume){
		"to be wiped": func(lv *v1alpha1.LocalVolume) { lv.Spec.Wipe = v1alpha1.WipeZero },
		"at a path":   func(lv *v1alpha1.LocalVolume) { lv.Spec.Directory = "shop/db" },
		"for a while": func(lv *v1alpha1.LocalVolume) { lv.Spec.RetainFor = &metav1.Duration{Duration: time.Hour} },
		"with a disk": func(lv *v1alpha1.LocalVolume) { lv.Spec.Adopt.Device = "bd-disk-0" },
		"in mode lvm": func(lv *v1alpha1.LocalVolume) {
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeLVM, "fast", "ext4"
		},
		"no directory":      func(lv *v1alpha1.LocalVolume) { lv.Spec.Adopt.Directory = "" },
		"a block device":    func(lv *v1alpha1.LocalVolume) { lv.Spec.VolumeMode = v1alpha1.VolumeBlock },
		"with a filesystem": func(lv *v1alpha1.LocalVolume) { lv.Spec.FSType = "ext4" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newHandedDirectory(t)
			h := directoryHost(t, d, mutate)
			_ = h.reconcile()
			h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonInvalid)
			if files := d.files(t); len(files) != 1 || files[0] != filepath.Join(d.dir, "file") {
				t.Errorf("the data are at %v", files)
			}
		})
	}
}
