// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestParseLimits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		params map[string]string
		want   *berth.VolumeLimits
	}{
		"nothing":                          {nil, nil},
		"all four":                         {map[string]string{"readIOPS": "100", "writeIOPS": "4294967294", "readBandwidth": "100Mi", "writeBandwidth": "1M"}, &berth.VolumeLimits{ReadIOPS: 100, WriteIOPS: 4294967294, ReadBytesPerSecond: 100 << 20, WriteBytesPerSecond: 1e6}},
		"one":                              {map[string]string{"readBandwidth": "1"}, &berth.VolumeLimits{ReadBytesPerSecond: 1}},
		"a whole quantity in another form": {map[string]string{"writeBandwidth": "1.5Ki"}, &berth.VolumeLimits{WriteBytesPerSecond: 1536}},
		"the largest":                      {map[string]string{"writeBandwidth": "9223372036854775806"}, &berth.VolumeLimits{WriteBytesPerSecond: 9223372036854775806}},
		"no limit in words":                {map[string]string{"readIOPS": "max", "writeBandwidth": "max"}, nil},
		"some":                             {map[string]string{"readIOPS": "max", "writeIOPS": "5"}, &berth.VolumeLimits{WriteIOPS: 5}},
	} {
		if got, err := provision.ParseLimits(test.params); err != nil || !provision.SameLimits(got, test.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, test := range map[string]struct {
		key, value string
		says       []string
	}{
		"unknown":                  {"iops", "1", []string{`"iops" is not known`, "readIOPS, writeIOPS, readBandwidth, writeBandwidth"}},
		"misspelt":                 {"readiops", "1", []string{`did you mean "readIOPS"?`}},
		"IOPS of zero":             {"readIOPS", "0", []string{"readIOPS", `"0"`, "from 1 to 4294967294"}},
		"negative IOPS":            {"writeIOPS", "-5", []string{"writeIOPS", "from 1"}},
		"IOPS as a quantity":       {"writeIOPS", "1k", []string{"writeIOPS", `"1k"`}},
		"more IOPS than counted":   {"readIOPS", "4294967295", []string{"readIOPS", "4294967294"}},
		"IOPS beyond all bounds":   {"readIOPS", "99999999999999999999", []string{"readIOPS"}},
		"empty IOPS":               {"readIOPS", "", []string{"readIOPS"}},
		"bandwidth of zero":        {"readBandwidth", "0", []string{"readBandwidth", "such as 100Mi"}},
		"negative bandwidth":       {"writeBandwidth", "-1Mi", []string{"writeBandwidth", `"-1Mi"`}},
		"a part of a byte":         {"writeBandwidth", "1500m", []string{"writeBandwidth", "whole"}},
		"with a unit":              {"writeBandwidth", "100MB/s", []string{"writeBandwidth"}},
		"more than can be counted": {"readBandwidth", "8Ei", []string{"readBandwidth", "8Ei"}},
		"beyond all bounds":        {"readBandwidth", "1e30", []string{"readBandwidth"}},
		"empty":                    {"readBandwidth", "", []string{"readBandwidth"}},
	} {
		got, err := provision.ParseLimits(map[string]string{test.key: test.value, "write-IOPS": "x"})
		if got != nil || !errors.Is(err, volume.ErrInvalid) || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %+v, %v", name, got, err)
			continue
		}
		for _, part := range append(test.says, `"write-IOPS" is not known`) {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
	}
}

func FuzzParseLimits(f *testing.F) {
	f.Add("readIOPS", "100")
	f.Add("writeBandwidth", "100Mi")
	f.Add("readBandwidth", "1e-9")
	f.Fuzz(func(t *testing.T, key, value string) {
		limits, err := provision.ParseLimits(map[string]string{key: value})
		if err != nil {
			if !errors.Is(err, volume.ErrInvalid) || limits != nil {
				t.Errorf("%q=%q: %+v, %v", key, value, limits, err)
			}
			return
		}
		if limits == nil {
			if value != "max" {
				t.Errorf("%q=%q limits nothing", key, value)
			}
			return
		}
		if min(limits.ReadIOPS, limits.WriteIOPS, limits.ReadBytesPerSecond, limits.WriteBytesPerSecond) < 0 || *limits == (berth.VolumeLimits{}) ||
			max(limits.ReadIOPS, limits.WriteIOPS) > berth.MaxIOPS {
			t.Errorf("%q=%q became %+v", key, value, limits)
		}
	})
}

func attributesClass(name, driver string, params map[string]string) *storagev1.VolumeAttributesClass {
	return &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name}, DriverName: driver, Parameters: params}
}

func TestProvisionWithAVolumeAttributesClass(t *testing.T) {
	t.Parallel()
	silver := "silver"
	c := provisiontest.New(t, attributesClass(silver, berth.DriverName, map[string]string{"readIOPS": "100"}))
	c.NewAgent(t, node, 10*gib)
	claim := claim("1Gi")
	claim.Spec.VolumeAttributesClassName = &silver
	pv, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class(lvmParams), node))
	if err != nil || state != controller.ProvisioningFinished {
		t.Fatalf("%v, %v", state, err)
	}
	if name := pv.Spec.VolumeAttributesClassName; name == nil || *name != silver {
		t.Errorf("the PersistentVolume is of class %v", name)
	}
	lv := c.Tracker.Get(pv.Name)
	if want := (&berth.VolumeLimits{ReadIOPS: 100}); !provision.SameLimits(lv.Spec.Limits, want) || !provision.SameLimits(lv.Status.Limits, want) {
		t.Errorf("limits %+v, %+v", lv.Spec.Limits, lv.Status.Limits)
	}
	if got, want := c.Requests(), []string{"GET *v1.VolumeAttributesClass", "POST *v1alpha1.LocalVolume"}; !slices.Equal(got, want) {
		t.Errorf("asked %q", got)
	}

	// A claim without a class asks for none, and an empty name is none.
	claim.UID = "c1a2"
	empty := ""
	for _, name := range []*string{nil, &empty} {
		claim.Spec.VolumeAttributesClassName = name
		pv, _, err = provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class(lvmParams), node))
		if err != nil || pv.Spec.VolumeAttributesClassName != nil || c.Tracker.Get(pv.Name).Spec.Limits != nil {
			t.Errorf("%+v, %v", pv, err)
		}
	}
	if got, want := c.Requests(), []string{"POST *v1alpha1.LocalVolume"}; !slices.Equal(got, want) {
		t.Errorf("asked %q", got)
	}
}

func TestProvisionRefusesAVolumeAttributesClass(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		class  *storagev1.VolumeAttributesClass
		params map[string]string
		// infeasible: the library need not try again soon.
		infeasible bool
		says       []string
	}{
		"bad value":      {attributesClass("silver", berth.DriverName, map[string]string{"readIOPS": "many"}), lvmParams, true, []string{`VolumeAttributesClass "silver"`, "readIOPS", "from 1 to"}},
		"another driver": {attributesClass("silver", "other.example.com", map[string]string{"type": "io1"}), lvmParams, true, []string{"other.example.com", berth.DriverName}},
		"hostpath":       {attributesClass("silver", berth.DriverName, map[string]string{"readIOPS": "1"}), map[string]string{"mode": "hostpath", "pool": "dirs"}, true, []string{"mode hostpath cannot be limited", "use a StorageClass of mode lvm or device"}},
		"not there":      {attributesClass("gold", berth.DriverName, map[string]string{"readIOPS": "1"}), lvmParams, false, []string{`VolumeAttributesClass "silver"`, "does not exist", "create it"}},
	} {
		c := provisiontest.New(t, test.class)
		agent := c.NewAgent(t, node, 10*gib)
		claim, silver := claim("1Gi"), "silver"
		claim.Spec.VolumeAttributesClassName = &silver
		_, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class(test.params), node))
		if err == nil || state != controller.ProvisioningFinished || (status.Code(err) == codes.InvalidArgument) != test.infeasible {
			t.Errorf("%s: %v, %v", name, state, err)
			continue
		}
		for _, part := range test.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
		if agent.Made() != 0 || c.Tracker.Get("pvc-c1a1") != nil {
			t.Errorf("%s: something was made", name)
		}
	}
}

func TestProvisionGoesElsewhereWhereANodeCannotLimit(t *testing.T) {
	t.Parallel()
	silver := "silver"
	c := provisiontest.New(t, attributesClass(silver, berth.DriverName, map[string]string{"readIOPS": "100"}), nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.CannotLimit(true)
	claim := claim("1Gi")
	claim.Spec.VolumeAttributesClassName = &silver
	_, state, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim, class(lvmParams), node))
	if state != controller.ProvisioningReschedule || err == nil || !strings.Contains(err.Error(), "no cgroup v2") {
		t.Errorf("%v, %v", state, err)
	}
	if agent.Carved() != 0 || c.Tracker.Get("pvc-c1a1") != nil {
		t.Error("something is left")
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	c.Requests()
	slow, fast := &berth.VolumeLimits{ReadIOPS: 10, WriteIOPS: 20}, &berth.VolumeLimits{WriteIOPS: 500, ReadBytesPerSecond: 1 << 20}
	for i, want := range []*berth.VolumeLimits{slow, slow, fast, nil, nil, fast} {
		lv, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", want)
		if err != nil || !provision.SameLimits(lv.Spec.Limits, want) || !provision.SameLimits(lv.Status.Limits, want) {
			t.Fatalf("step %d: %+v, %v", i, lv, err)
		}
	}
	if got := c.Requests(); len(got) != 4 {
		t.Errorf("asked %q, want one PATCH for each change", got)
	}

	// What the node cannot do changes nothing.
	agent.CannotLimit(true)
	var failure *provision.Failure
	for range 2 {
		_, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", slow)
		if !errors.As(err, &failure) || failure.Reason != berth.ReasonNotEnforceable || !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("got %v", err)
		}
		if lv := liveVolume(t, c); !provision.SameLimits(lv.Spec.Limits, fast) {
			t.Errorf("spec.limits is %+v", lv.Spec.Limits)
		}
	}
	agent.CannotLimit(false)
	if _, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", slow); err != nil {
		t.Error(err)
	}

	if _, err := c.Volumes.Limit(within(t, 10*time.Second), "nothing", slow); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestLimitWithoutAnAnswerIsOpen(t *testing.T) {
	t.Parallel()
	lv := &berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}, Spec: request("pvc-1", gib).Spec}
	c := provisiontest.New(t, nodeObject(node), lv)
	var pending *provision.Pending
	want := &berth.VolumeLimits{ReadIOPS: 1}
	for range 2 {
		_, err := c.Volumes.Limit(within(t, 100*time.Millisecond), "pvc-1", want)
		if !errors.As(err, &pending) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is its pod running") {
			t.Errorf("got %v", err)
		}
	}
	if lv := liveVolume(t, c); !provision.SameLimits(lv.Spec.Limits, want) {
		t.Errorf("spec.limits is %+v", lv.Spec.Limits)
	}
}

func TestLimitSaysWhyNot(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	c.NewAgent(t, node, 10*gib)
	dirs := request("pvc-1", gib)
	dirs.Spec.Mode = berth.ModeHostpath
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), dirs); err != nil {
		t.Fatal(err)
	}
	c.Requests()
	_, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", &berth.VolumeLimits{ReadIOPS: 1})
	if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "mode hostpath cannot be limited") {
		t.Errorf("got %v", err)
	}
	if got := c.Requests(); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
	if _, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", nil); err != nil {
		t.Errorf("no limits: %v", err)
	}
}

// The answer to a request is lost, or the process ends: asked again, it is as wanted.
func TestLimitConvergesWhenAnswersAreLost(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	lost := apierrors.NewInternalError(errors.New("lost"))
	want := &berth.VolumeLimits{ReadIOPS: 10}
	for _, refuse := range []bool{false, true} {
		agent.CannotLimit(refuse)
		for patches := range 3 {
			n := 0
			c.Fail(func(verb string, _ runtime.Object, _ string) (before, after error) {
				if n++; verb == "PATCH" && n > patches {
					return nil, lost
				}
				return nil, nil
			})
			_, _ = c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", want)
			c.Fail(nil)
			_, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", want)
			if refuse != errors.Is(err, volume.ErrInvalid) || !refuse && err != nil {
				t.Errorf("after %d patches: %v", patches, err)
			}
			if lv := liveVolume(t, c); refuse && lv.Spec.Limits != nil {
				t.Errorf("after %d patches: spec.limits is %+v", patches, lv.Spec.Limits)
			}
			if _, err := c.Volumes.Limit(within(t, 10*time.Second), "pvc-1", nil); err != nil {
				t.Errorf("after %d patches: taken away: %v", patches, err)
			}
			if lv := liveVolume(t, c); lv.Status.Limits != nil || meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeLimited) != nil {
				t.Errorf("after %d patches: status %+v", patches, lv.Status)
			}
		}
	}
}

// liveVolume is the volume as the API server has it.
func liveVolume(t *testing.T, c *provisiontest.Cluster) *berth.LocalVolume {
	t.Helper()
	lv := &berth.LocalVolume{}
	if err := c.Backdoor.Get(t.Context(), client.ObjectKey{Name: "pvc-1"}, lv); err != nil {
		t.Fatal(err)
	}
	return lv
}
