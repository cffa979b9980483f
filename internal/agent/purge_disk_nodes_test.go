// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// A disk that another node has, too, is in use where nobody here can see it.
func TestPurgeKeepsADiskOfTwoNodes(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	for name, tc := range map[string]struct {
		scheme string
		state  v1alpha1.DeviceState
		held   bool
		kept   bool
	}{
		"seen there":                     {scheme: block.SchemeWWN, state: v1alpha1.DeviceActive, kept: true},
		"was there and is held":          {scheme: block.SchemeWWN, state: v1alpha1.DeviceInactive, held: true, kept: true},
		"was there":                      {scheme: block.SchemeWWN, state: v1alpha1.DeviceInactive},
		"a serial number of every guest": {scheme: block.SchemeSerial, state: v1alpha1.DeviceActive, held: true},
	} {
		there := &v1alpha1.BlockDevice{ObjectMeta: metav1.ObjectMeta{Name: "bd-there"}, Spec: v1alpha1.BlockDeviceSpec{NodeName: "n2"}}
		there.Status.State, there.Status.Identity = tc.state, &v1alpha1.DeviceIdentity{Scheme: tc.scheme, Value: "same"}
		if tc.held {
			there.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: device.OwnerVolume, Name: "theirs", UID: types.UID(volumetest.ID(9))}
		}
		here := there.DeepCopy()
		here.Name, here.Spec.NodeName = "bd-here", "n1"
		h.create(there)
		h.create(here)
		rec := diskRecord(device.Claimed{Name: "bd-here", IdentityScheme: tc.scheme, IdentityValue: "same"})
		owner, err := ownerOf(t.Context(), h.api, behind(volumetest.ID(1), []string{"pvc-1"}, false, rec))
		if err != nil || strings.Contains(owner, "node n2") != tc.kept || !tc.kept && owner != "" {
			t.Errorf("%s: it belongs to %q, %v", name, owner, err)
		}
		h.remove(there)
		h.remove(here)
	}
}
