// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestSecretsOf(t *testing.T) {
	t.Parallel()
	const prefix = "csi.storage.k8s.io/"
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
		Name: "data", Namespace: "shop", Annotations: map[string]string{"key": "mine", "bad": "${pvc.name}/..", "empty": ""},
	}}
	ref := func(namespace, name string) *corev1.SecretReference {
		return &corev1.SecretReference{Namespace: namespace, Name: name}
	}
	for name, tt := range map[string]struct {
		stage, expand [2]string // namespace and name
		plain         bool
		want          provision.Secrets
		refused       []string
	}{
		"not encrypted":      {plain: true, want: provision.Secrets{}},
		"one for both":       {stage: [2]string{"ns", "key"}, want: provision.Secrets{Stage: ref("ns", "key"), Expand: ref("ns", "key")}},
		"one each":           {stage: [2]string{"ns", "key"}, expand: [2]string{"ns", "other"}, want: provision.Secrets{Stage: ref("ns", "key"), Expand: ref("ns", "other")}},
		"of the claim":       {stage: [2]string{"${pvc.namespace}", "${pvc.name}-key"}, want: provision.Secrets{Stage: ref("shop", "data-key"), Expand: ref("shop", "data-key")}},
		"of the volume":      {stage: [2]string{"ns", "${pv.name}"}, want: provision.Secrets{Stage: ref("ns", "pvc-1"), Expand: ref("ns", "pvc-1")}},
		"of an annotation":   {stage: [2]string{"ns", "${pvc.annotations['key']}"}, want: provision.Secrets{Stage: ref("ns", "mine"), Expand: ref("ns", "mine")}},
		"none":               {refused: []string{"no Secret has its passphrase: set csi.storage.k8s.io/node-stage-secret-name and csi.storage.k8s.io/node-stage-secret-namespace"}},
		"a name only":        {stage: [2]string{"", "key"}, refused: []string{"name one Secret: set both or none"}},
		"a namespace only":   {stage: [2]string{"ns", ""}, refused: []string{"name one Secret: set both or none"}},
		"half of the other":  {stage: [2]string{"ns", "key"}, expand: [2]string{"ns", ""}, refused: []string{"node-expand-secret-name and csi.storage.k8s.io/node-expand-secret-namespace name one Secret"}},
		"no annotation":      {stage: [2]string{"ns", "${pvc.annotations['none']}"}, refused: []string{`node-stage-secret-name: the claim has no annotation "none"`}},
		"an empty one":       {stage: [2]string{"ns", "${pvc.annotations['empty']}"}, refused: []string{`"" cannot be the name of a Secret`}},
		"a bad name":         {stage: [2]string{"ns", "${pvc.annotations['bad']}"}, refused: []string{`"${pvc.name}/.." cannot be the name of a Secret`}},
		"an odd placeholder": {stage: [2]string{"ns", "${pod.name}"}, refused: []string{"${pod.name} is not known here"}},
		"one without an end": {stage: [2]string{"ns", "a-${pvc.name"}, refused: []string{"${pvc.name is not known here"}},
		// Whoever may make a claim must not choose the namespace of the Secret.
		"a namespace by annotation": {stage: [2]string{"${pvc.annotations['key']}", "key"}, refused: []string{"node-stage-secret-namespace: ${pvc.annotations['key']} is not known here; there are ${pv.name} and ${pvc.namespace}"}},
		"a namespace by name":       {stage: [2]string{"${pvc.name}", "key"}, refused: []string{"node-stage-secret-namespace: ${pvc.name} is not known here"}},
		"a bad namespace":           {stage: [2]string{"a.b", "key"}, refused: []string{`"a.b" cannot be the name of a namespace`}},
	} {
		params := map[string]string{}
		for key, value := range map[string]string{
			"node-stage-secret-namespace": tt.stage[0], "node-stage-secret-name": tt.stage[1],
			"node-expand-secret-namespace": tt.expand[0], "node-expand-secret-name": tt.expand[1],
		} {
			if value != "" {
				params[prefix+key] = value
			}
		}
		encryption := berth.EncryptionLUKS2
		if tt.plain {
			encryption = ""
		}
		got, err := provision.SecretsOf(params, encryption, "pvc-1", claim)
		if len(tt.refused) == 0 {
			if err != nil || !cmp.Equal(got, tt.want) {
				t.Errorf("%s: got %v, %v, want %v", name, got, err, tt.want)
			}
			continue
		}
		if !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: got %v, want a refusal", name, err)
			continue
		}
		for _, words := range tt.refused {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %q lacks %q", name, err, words)
			}
		}
	}
}

func TestCopyHasTheEncryptionOfItsSource(t *testing.T) {
	t.Parallel()
	ready := []metav1.Condition{{Type: berth.LocalVolumeReady, Status: metav1.ConditionTrue}}
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", UID: "u"},
		Spec:       berth.LocalVolumeSpec{NodeName: "n1", Mode: berth.ModeLVM, Pool: "fast", VolumeMode: berth.VolumeBlock, Encryption: berth.EncryptionLUKS2},
		Status:     berth.LocalVolumeStatus{Conditions: ready, Capacity: resource.NewQuantity(8, resource.BinarySI), Encryption: &berth.EncryptionStatus{State: berth.EncryptionUnsealed}},
	}
	if _, err := provision.OriginOfVolume(lv, "the claim"); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("a source that no pod has used: %v, want ErrBusy", err)
	}
	lv.Status.Encryption.State = berth.EncryptionSealed
	origin, err := provision.OriginOfVolume(lv, "the claim")
	if err != nil {
		t.Fatal(err)
	}
	request := provision.Request{
		Spec:  berth.LocalVolumeSpec{Mode: berth.ModeLVM, VolumeMode: berth.VolumeBlock, SizeBytes: 8, Encryption: berth.EncryptionLUKS2},
		Pools: []string{"other", "fast"},
	}
	if err := origin.Fill(&request); err != nil {
		t.Error(err)
	}
	if request.Spec.Pool != "fast" {
		t.Errorf("the copy is asked for in pool %q, and its source is in fast", request.Spec.Pool)
	}
	request.Spec.Encryption = ""
	if err := origin.Fill(&request); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "parameter encryption") {
		t.Errorf("a copy that is not encrypted: %v, want a refusal that names the parameter", err)
	}
}
