// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestPoolSetValidation(t *testing.T) {
	t.Parallel()
	small := resource.MustParse("10Gi")
	tests := []struct {
		name    string
		object  string
		spec    v1alpha1.PoolSetSpec
		refused string
	}{
		{"lvm", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{MinSize: &small}, Reserve: "5%"}, ""},
		{"stripes", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped}, ""},
		{"a layout that nobody knows", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: "raid0"}, "spec.layout"},
		{"stripes of directories", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Layout: v1alpha1.LayoutStriped,
		}, "spec.layout is for kind lvm"},
		{"mirrors", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutMirror, RebuildAfter: &metav1.Duration{Duration: time.Minute},
		}, ""},
		{"rebuilt at once", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutRAID6, RebuildAfter: &metav1.Duration{},
		}, ""},
		{"rebuilt before it is lost", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutRAID5, RebuildAfter: &metav1.Duration{Duration: -time.Minute},
		}, "spec.rebuildAfter is a duration from 0s to 720h"},
		{"rebuilt without redundancy", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped, RebuildAfter: &metav1.Duration{Duration: time.Minute},
		}, "spec.rebuildAfter is for the layouts mirror, raid5, raid6 and raid10"},
		{"thin mirrors", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutMirror, Thin: &v1alpha1.ThinPool{},
		}, ""},
		{"thin", "fast", thinPool(nil), ""},
		{"thin with all there is", "fast", thinPool(&v1alpha1.ThinPool{
			OverprovisionRatio: "2.25", InitialPercent: 20, Autoextend: v1alpha1.Autoextend{ThresholdPercent: 50, Percent: 100}, HighWaterPercent: 100, WhenFull: v1alpha1.WhenFullFail,
		}), ""},
		{"thin that promises less than there is", "fast", thinPool(&v1alpha1.ThinPool{OverprovisionRatio: "0.5"}), "spec.thin.overprovisionRatio"},
		{"thin that begins with too much", "fast", thinPool(&v1alpha1.ThinPool{InitialPercent: 101}), "spec.thin.initialPercent"},
		{"thin with a threshold that lvm cannot have", "fast", thinPool(&v1alpha1.ThinPool{Autoextend: v1alpha1.Autoextend{ThresholdPercent: 49}}), "spec.thin.autoextend.thresholdPercent"},
		{"thin that is full at what nobody knows", "fast", thinPool(&v1alpha1.ThinPool{WhenFull: "Panic"}), "spec.thin.whenFull"},
		{"thin in stripes", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped, Thin: &v1alpha1.ThinPool{},
		}, ""},
		{"thin directories", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Thin: &v1alpha1.ThinPool{},
		}, "spec.thin is for kind lvm"},
		{"adopted", "fast", adopting(nil), ""},
		{"adopted in stripes", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutStriped }), ""},
		{"adopted with disks to add", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.DeviceSelector = &v1alpha1.DeviceSelector{} }), "spec.deviceSelector is not allowed beside spec.adopt"},
		{"adopted and mirrored", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutMirror }), "spec.adopt is for kind lvm and the layouts linear and striped"},
		{"adopted, with a thin pool to make", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Thin = &v1alpha1.ThinPool{} }), "spec.thin and spec.adopt.thinPoolName go together"},
		{"adopted thin pool", "fast", adoptingThinPool(nil), ""},
		{"adopted thin pool with a policy", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) {
			s.Thin = &v1alpha1.ThinPool{OverprovisionRatio: "2.0", HighWaterPercent: 80}
		}), ""},
		{"adopted thin pool without a policy", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin = nil }), "spec.thin and spec.adopt.thinPoolName go together"},
		{"adopted thin pool in stripes", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutStriped }), "those of a thin pool that was adopted lie where that lies"},
		{"adopted thin pool by its name alone", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolUUID = "" }), "spec.adopt.thinPoolName and spec.adopt.thinPoolUUID go together"},
		{"adopted thin pool by its UUID alone", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName, s.Thin = "", nil }), "spec.adopt.thinPoolName and spec.adopt.thinPoolUUID go together"},
		{"adopted thin pool by an option", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName = "--yes" }), "spec.adopt.thinPoolName"},
		{"adopted thin pool by half a UUID", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolUUID = "AAAAAA" }), "spec.adopt.thinPoolUUID"},
		{"adopted thin pool that shall begin small", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.InitialPercent = 50 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall grow", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.Percent = 10 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall grow early", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.ThresholdPercent = 60 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall fail", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.WhenFull = v1alpha1.WhenFullFail }), "a thin pool that was adopted is never extended or changed"},
		{"adopted directory", "fast", adopting(func(s *v1alpha1.PoolSetSpec) {
			s.Kind, s.Hostpath = v1alpha1.PoolHostpath, &v1alpha1.HostpathPool{Path: "/var/lib/x"}
		}), "spec.adopt is for kind lvm"},
		{"adopted by an option", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Adopt.VGName = "--force" }), "spec.adopt.vgName"},
		{"adopted by half a UUID", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Adopt.VGUUID = "AAAAAA" }), "spec.adopt.vgUUID"},
		{"lvm without a selector", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM}, "spec.deviceSelector is needed"},
		{"lvm with a path", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"},
		}, "spec.hostpath is not allowed"},
		{"hostpath", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Reserve: "10Gi"}, ""},
		{"hostpath without a path", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath}, "spec.hostpath.path is needed"},
		{"hostpath with a selector", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, DeviceSelector: &v1alpha1.DeviceSelector{},
		}, "spec.deviceSelector is not allowed"},
		{"root of the host", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/"}}, "spec.hostpath.path"},
		{"relative path", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "var/lib"}}, "spec.hostpath.path"},
		{"path that climbs", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/../../etc"}}, "must be clean"},
		{"path that stays where it is", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/./lib"}}, "must be clean"},
		{"path that ends in a slash", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x/"}}, "must be clean"},
		{"reserve in words", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Reserve: "some"}, "spec.reserve"},
		{"name that no volume group can have", "fast.pool", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}}, "volume group's name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set := &v1alpha1.PoolSet{Spec: test.spec}
			set.Name = test.object
			err := server.admin.Create(t.Context(), set, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func adopting(change func(*v1alpha1.PoolSetSpec)) v1alpha1.PoolSetSpec {
	spec := v1alpha1.PoolSetSpec{
		Kind: v1alpha1.PoolLVM, Adopt: &v1alpha1.AdoptedGroup{VGName: "data", VGUUID: "XZYfXk-xgBA-iMVT-6m8H-2bOs-HxsY-2dYVzB"},
	}
	if change != nil {
		change(&spec)
	}
	return spec
}

func adoptingThinPool(change func(*v1alpha1.PoolSetSpec)) v1alpha1.PoolSetSpec {
	spec := adopting(func(s *v1alpha1.PoolSetSpec) {
		s.Adopt.ThinPoolName, s.Adopt.ThinPoolUUID = "tank", "GgYpIC-Lk79-sc4W-ibsA-FZAx-VqPn-80i1Ee"
		s.Thin = &v1alpha1.ThinPool{}
	})
	if change != nil {
		change(&spec)
	}
	return spec
}

func thinPool(thin *v1alpha1.ThinPool) v1alpha1.PoolSetSpec {
	if thin == nil {
		thin = &v1alpha1.ThinPool{}
	}
	return v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Thin: thin}
}

// thin: {} gets every default, and its presence does not change.
func TestThinPoolSet(t *testing.T) {
	t.Parallel()
	set := &v1alpha1.PoolSet{Spec: thinPool(nil)}
	set.Name = "thin-changes"
	if err := server.admin.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.ThinPool{
		OverprovisionRatio: "1", InitialPercent: 100, Autoextend: v1alpha1.Autoextend{ThresholdPercent: 80, Percent: 20}, HighWaterPercent: 95, WhenFull: v1alpha1.WhenFullWait,
	}
	if set.Spec.Thin == nil || *set.Spec.Thin != want {
		t.Errorf("got %+v, want %+v", set.Spec.Thin, want)
	}
	changed := set.DeepCopy()
	changed.Spec.Thin.OverprovisionRatio = "3"
	if err := server.admin.Update(t.Context(), changed, client.DryRunAll); err != nil {
		t.Errorf("another ratio: %v", err)
	}
	changed = set.DeepCopy()
	changed.Spec.Thin = nil
	wantRefused(t, server.admin.Update(t.Context(), changed, client.DryRunAll), "spec.thin cannot be added or taken away")
}

// What was adopted stays that, and how far it may be used can be changed.
func TestAdoptedThinPoolChanges(t *testing.T) {
	t.Parallel()
	set := &v1alpha1.PoolSet{Spec: adoptingThinPool(nil)}
	set.Name = "adopted-changes"
	set.Spec.NodeSelector = map[string]string{"nowhere": ""}
	if err := server.admin.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.admin.Delete(context.Background(), set) })
	for name, test := range map[string]struct {
		change  func(*v1alpha1.PoolSetSpec)
		refused string
	}{
		"another ratio":      {func(s *v1alpha1.PoolSetSpec) { s.Thin.OverprovisionRatio = "3" }, ""},
		"another thin pool":  {func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName = "lake" }, "spec.adopt is immutable"},
		"its group, no pool": {func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName, s.Adopt.ThinPoolUUID, s.Thin = "", "", nil }, "spec.adopt is immutable"},
		"growth":             {func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.Percent = 50 }, "never extended or changed"},
	} {
		changed := set.DeepCopy()
		test.change(&changed.Spec)
		err := server.admin.Update(t.Context(), changed, client.DryRunAll)
		if test.refused != "" {
			wantRefused(t, err, test.refused)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
