// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

// What is deleted is only what was never ready and what nothing leads to, and only
// after it was watched for a while.
func TestOrphans(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ready   bool
		late    bool                                // it is ready when it is looked at again
		claim   func(*corev1.PersistentVolumeClaim) // nil: the claim is gone
		pv      bool
		driven  bool
		foreign bool // made through CSI, without a claim
		deleted bool
		says    string
	}{
		"never ready, claim gone":       {deleted: true, says: "Orphaned"},
		"claim made anew":               {claim: func(c *corev1.PersistentVolumeClaim) { c.UID = "a-new-one" }, deleted: true, says: "Orphaned"},
		"claim got another volume":      {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "by-hand" }, deleted: true, says: "Orphaned"},
		"ready, claim gone":             {ready: true, says: "its data is kept"},
		"ready after all":               {late: true, says: "its data is kept"},
		"claim is there":                {claim: func(*corev1.PersistentVolumeClaim) {}},
		"claim has this volume":         {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-c1a1" }},
		"a PersistentVolume names it":   {pv: true},
		"the library is still at it":    {driven: true},
		"another CO's, without a claim": {foreign: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := &berth.LocalVolume{
				ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1a1", Finalizers: []string{berth.AgentFinalizer}},
				Spec:       berth.LocalVolumeSpec{NodeName: node, ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "data", UID: "c1a1"}},
			}
			if test.foreign {
				lv.Spec.ClaimRef = nil
			}
			objects := []client.Object{lv}
			if test.claim != nil {
				c := claim("1Gi")
				test.claim(c)
				objects = append(objects, c)
			}
			if test.pv {
				objects = append(objects, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1a1"}})
			}
			c := provisiontest.New(t, objects...)
			if test.ready {
				if err := c.SetReady(t.Context(), lv.Name, metav1.ConditionTrue, berth.ReasonCarved, "carved", gib); err != nil {
					t.Fatal(err)
				}
			}
			now := time.Now()
			recorder := events.NewFakeRecorder(10)
			o := &provision.Orphans{
				Cached: c.Backdoor, Live: c.Client, Writer: c.Client, Recorder: recorder, Log: slog.New(slog.DiscardHandler),
				Driven: func(types.UID) bool { return test.driven }, Now: func() time.Time { return now },
			}
			reconcileIt := func() time.Duration {
				result, err := o.Reconcile(context.Background(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(lv)})
				if err != nil {
					t.Fatal(err)
				}
				return result.RequeueAfter
			}
			deleted := func() bool {
				current := &berth.LocalVolume{}
				err := c.Backdoor.Get(t.Context(), client.ObjectKeyFromObject(lv), current)
				return apierrors.IsNotFound(err) || current.DeletionTimestamp != nil
			}
			again := reconcileIt()
			if deleted() {
				t.Fatal("deleted at first sight")
			}
			if (again > 0) != (test.deleted || test.late) {
				t.Errorf("looks again after %s", again)
			}
			now = now.Add(time.Hour)
			if test.late {
				if err := c.SetReady(t.Context(), lv.Name, metav1.ConditionTrue, berth.ReasonCarved, "carved", gib); err != nil {
					t.Fatal(err)
				}
				if first := <-recorder.Events; !strings.Contains(first, "Orphaned") {
					t.Errorf("said first %q", first)
				}
			}
			reconcileIt()
			reconcileIt()
			if deleted() != test.deleted {
				t.Errorf("deleted: %v", deleted())
			}
			current := &berth.LocalVolume{}
			if err := c.Backdoor.Get(t.Context(), client.ObjectKeyFromObject(lv), current); err != nil || (current.Annotations[berth.AnnotationNeverReady] == "true") != test.deleted {
				t.Errorf("its agent is told by %v, %v", current.Annotations, err)
			}
			close(recorder.Events)
			var said []string
			for event := range recorder.Events {
				said = append(said, event)
			}
			if test.says == "" && len(said) > 0 || test.says != "" && (len(said) != 1 || !strings.Contains(said[0], test.says)) {
				t.Errorf("said %q", said)
			}
		})
	}
}

// The cache is behind: the API server knows better, and has the last word.
func TestOrphanIsCheckedAgainstTheAPIServer(t *testing.T) {
	t.Parallel()
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1a1", Finalizers: []string{berth.AgentFinalizer}},
		Spec:       berth.LocalVolumeSpec{NodeName: node, ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "data", UID: "c1a1"}},
	}
	behind := provisiontest.New(t, lv.DeepCopy())
	c := provisiontest.New(t, lv, claim("1Gi"))
	now := time.Now()
	o := &provision.Orphans{
		Cached: behind.Backdoor, Live: c.Client, Writer: c.Client, Recorder: events.NewFakeRecorder(10), Log: slog.New(slog.DiscardHandler),
		Driven: func(types.UID) bool { return false }, Now: func() time.Time { return now },
	}
	for range 3 {
		if _, err := o.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(lv)}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
	}
	current := &berth.LocalVolume{}
	if err := c.Backdoor.Get(t.Context(), client.ObjectKeyFromObject(lv), current); err != nil || current.DeletionTimestamp != nil {
		t.Errorf("deleted under its claim: %v", err)
	}
}
