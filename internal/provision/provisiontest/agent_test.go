// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provisiontest_test

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

// An agent answers to the spec that it read. One that stamped its answer with the
// generation of a spec that came meanwhile would refuse what it never looked at.
func TestAgentAnswersToWhatItRead(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t)
	agent := c.NewAgent(t, "node1", 10)
	volume := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", Generation: 1},
		Spec:       berth.LocalVolumeSpec{NodeName: "node1", Mode: berth.ModeLVM, SizeBytes: 100},
	}
	answered := make(chan int64, 1)
	c.Watch(t, func(event watch.Event) {
		ready := meta.FindStatusCondition(event.Object.(*berth.LocalVolume).Status.Conditions, berth.LocalVolumeReady)
		if ready != nil && ready.Status == metav1.ConditionFalse {
			select {
			case answered <- ready.ObservedGeneration:
			default: // only the first answer is of interest
			}
		}
	})
	patched := false
	agent.Answer(func(lv *berth.LocalVolume) (reason, message string) {
		if patched {
			return "", ""
		}
		patched = true
		patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"sizeBytes":5}}`))
		if err := c.Backdoor.Patch(t.Context(), lv.DeepCopy(), patch); err != nil {
			t.Errorf("ask for less meanwhile: %v", err)
		}
		return berth.ReasonNoSpace, fmt.Sprintf("%d bytes are too many", lv.Spec.SizeBytes)
	})
	if err := c.Backdoor.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	if generation := <-answered; generation != 1 {
		t.Errorf("the refusal of generation 1 is said of generation %d", generation)
	}
}
