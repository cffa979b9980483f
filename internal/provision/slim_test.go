// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/internal/provision"
)

// What the library writes back must be whole; what it only passes over is small.
func TestSlimClaims(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		provisioner, volume string
		whole               bool
	}{
		"new":              {whole: true},
		"ours":             {provisioner: "berth.dev", whole: true},
		"ours, bound":      {provisioner: "berth.dev", volume: "pv"},
		"somebody else's":  {provisioner: "other.example.com"},
		"bound, by nobody": {volume: "pv"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := claim("1Gi")
			c.Labels, c.Spec.VolumeName = map[string]string{"app": "db"}, test.volume
			c.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
			if test.provisioner != "" {
				c.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": test.provisioner}
			}
			got, err := provision.SlimClaims(c)
			if err != nil {
				t.Fatal(err)
			}
			slim := got.(*corev1.PersistentVolumeClaim)
			if slim.UID != "c1a1" || slim.Name != "data" || slim.Namespace != "default" || slim.Spec.VolumeName != test.volume ||
				slim.Annotations["volume.kubernetes.io/storage-provisioner"] != test.provisioner {
				t.Errorf("lost what the library reads: %+v", slim)
			}
			if slim.ManagedFields != nil {
				t.Error("kept managedFields")
			}
			if whole := len(slim.Labels) == 1 && len(slim.Spec.Resources.Requests) == 1; whole != test.whole {
				t.Errorf("whole: %v", whole)
			}
		})
	}
}

func TestSlimPersistentVolumes(t *testing.T) {
	t.Parallel()
	for driver, whole := range map[string]bool{"berth.dev": true, "other.example.com": false} {
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Finalizers: []string{"a/b"}, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driver}}}
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "h"}
		got, err := provision.SlimPersistentVolumes(pv)
		if err != nil {
			t.Fatal(err)
		}
		slim := got.(*corev1.PersistentVolume)
		if slim.Name != "pv" || slim.Spec.CSI.Driver != driver || slim.Annotations["pv.kubernetes.io/provisioned-by"] != driver {
			t.Errorf("%s: lost what the library reads: %+v", driver, slim)
		}
		if (slim.Spec.CSI.VolumeHandle == "h" && len(slim.Finalizers) == 1) != whole {
			t.Errorf("%s: %+v", driver, slim)
		}
	}
}
