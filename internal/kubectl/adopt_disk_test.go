// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// adoptedDisk is a LocalVolume that asks for the disk, with what its agent says.
func adoptedDisk(reason string) *berth.LocalVolume {
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: adoptedName, UID: "heir"},
		Spec: berth.LocalVolumeSpec{
			NodeName: "node1", Mode: berth.ModeDevice, VolumeMode: berth.VolumeFilesystem, SizeBytes: 1610612736, FSType: "ext4",
			Adopt: &berth.Adoption{LeftOver: &berth.AdoptedLeftOver{UID: leftUID, Identity: leftDisk}},
		},
	}
	answerDisk(lv, reason)
	return lv
}

func answerDisk(lv *berth.LocalVolume, reason string) {
	answerAdoption(lv, reason)
	if lv.Status.LVM != nil {
		lv.Status.LVM, lv.Status.Device = nil, &berth.DeviceRecord{BlockDeviceName: "bd-2"}
		lv.Status.Capacity = resource.NewQuantity(1610612736, resource.BinarySI)
	}
}

func TestAdoptOfADisk(t *testing.T) {
	t.Parallel()
	taken := func(_ *cluster, d *berth.BlockDevice) {
		d.Spec.ClaimRef.Name, d.Spec.ClaimRef.UID = adoptedName, "heir"
	}
	for name, tc := range map[string]struct {
		args    string
		change  func(*cluster, *berth.BlockDevice)
		add     []client.Object
		answers string
		code    int
		lv, pv  bool
		says    []string
	}{
		"planned": {
			args: "node1/bd-2 --fs-type=ext4 --claim=shop/orders",
			says: []string{"Volume on the whole disk bd-2 of node node1", "Volume    pvc-raw", "Identity  " + leftDisk, "It becomes LocalVolume and PersistentVolume " + adoptedName, "Nothing was changed.", "adopt node1/bd-2 --fs-type=ext4 --claim=shop/orders --yes"},
		},
		"done":            {args: "node1/bd-2 --fs-type=ext4 --yes", answers: berth.ReasonCarved, lv: true, pv: true, says: []string{"a volume of Berth again"}},
		"done by its UID": {args: "node1/" + leftUID + " --fs-type=none --yes", answers: berth.ReasonCarved, lv: true, pv: true, says: []string{"a volume of Berth again"}},
		"refused by the agent": {
			args: "node1/bd-2 --fs-type=xfs --yes", answers: berth.ReasonNotAdoptable, code: exitTrouble, lv: true, says: []string{"NotAdoptable: as it is", "adopt node1/bd-2 --withdraw --yes"},
		},
		"gone on with":            {args: "node1/bd-2 --yes", change: taken, add: []client.Object{adoptedDisk(berth.ReasonCarved)}, lv: true, pv: true, says: []string{"UID       " + leftUID, "a volume of Berth again"}},
		"gone on with by its UID": {args: "node1/" + leftUID + " --yes", change: taken, add: []client.Object{adoptedDisk(berth.ReasonCarved)}, lv: true, pv: true, says: []string{"a volume of Berth again"}},
		"withdrawn":               {args: "node1/bd-2 --withdraw --yes", add: []client.Object{adoptedDisk(berth.ReasonNotAdoptable)}, says: []string{"not asked for any more"}},
		"withdrawn too late":      {args: "node1/bd-2 --withdraw --yes", change: taken, add: []client.Object{adoptedDisk(berth.ReasonCarved)}, code: exitTrouble, lv: true, says: []string{"adopted already"}},
		"to be purged": {change: func(_ *cluster, d *berth.BlockDevice) {
			d.Spec.Purge = []berth.PurgeRequest{{UID: leftUID, Kind: berth.LeftOverVolume, Identity: leftDisk}}
		}, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"orphans purge node1/bd-2 --withdraw --yes"}},
		"a larger claim": {
			args: "node1/bd-2 --fs-type=ext4 --claim=default/large --yes", change: func(c *cluster, _ *berth.BlockDevice) {
				claim := claimOf("large", "", "")
				claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}
				c.add(claim)
			}, code: exitTrouble, says: []string{"asks for 2Gi, and the left-over has 1.5Gi"},
		},
		"a claim waits for it": {change: func(c *cluster, _ *berth.BlockDevice) { c.add(claimOf("lost", "fast", "pvc-raw")) }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"claim default/lost is bound to"}},
		"a LocalVolume is there": {change: func(c *cluster, _ *berth.BlockDevice) {
			c.add(&berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-raw", UID: "another"}, Spec: berth.LocalVolumeSpec{NodeName: "node1"}})
		}, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"there is a LocalVolume pvc-raw"}},
		"another one's LocalVolume": {
			args: "node1/bd-2 --fs-type=ext4 --yes", add: []client.Object{adoptedVolume("")}, code: exitUsage, lv: true, says: []string{"not of this left-over"},
		},
		"of a pool":    {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.ClaimRef.Kind = "Pool" }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"part of Pool pvc-raw"}},
		"of nobody":    {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.ClaimRef = nil }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"no volume holds it"}},
		"released":     {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.ClaimState = berth.ClaimStateReleased }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"was released already"}},
		"away":         {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.State = berth.DeviceInactive }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"when it is back"}},
		"reserved":     {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.Reserved = "for tests" }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"reserved: for tests"}},
		"unknown":      {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.Identity = nil }, args: "node1/bd-2 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"cannot be named in full"}},
		"no type":      {args: "node1/bd-2 --yes", code: exitUsage, says: []string{"--fs-type"}},
		"no such disk": {args: "node1/bd-9 --fs-type=ext4", code: exitUsage, says: []string{"has no BlockDevice bd-9"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			d := get[*berth.BlockDevice](c, "BlockDevice//bd-2")
			d.Spec.ClaimRef = &berth.BlockDeviceClaimRef{Kind: "LocalVolume", Name: "pvc-raw", UID: types.UID(leftUID)}
			d.Status.ClaimState, d.Status.State = berth.ClaimStateClaimed, berth.DeviceActive
			d.Status.Identity = &berth.DeviceIdentity{Scheme: "serial", Value: "S2"}
			if tc.change != nil {
				tc.change(c, d)
			}
			run := runAdoption(t, c, tc.add, tc.args, func(lv *berth.LocalVolume) { answerDisk(lv, tc.answers) })
			run.want(t, tc.code, tc.lv, tc.pv, tc.says...)
			if t.Failed() {
				return
			}
			lv, pv := run.lv, run.pv
			if len(tc.add) == 0 && tc.lv && (lv.Spec.Adopt == nil || lv.Spec.Adopt.LeftOver == nil || lv.Spec.Adopt.LeftOver.UID != leftUID || lv.Spec.Adopt.LeftOver.Identity != leftDisk || lv.Spec.Mode != berth.ModeDevice || lv.Spec.Pool != "" || lv.Spec.SizeBytes != 1610612736) {
				t.Errorf("the LocalVolume is %+v", lv.Spec)
			}
			if tc.pv && (pv.Spec.CSI.VolumeHandle != adoptedName || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || pv.Spec.Capacity.Storage().Value() != 1610612736 || nodeOf(pv) != "node1") {
				t.Errorf("the PersistentVolume is %+v", pv.Spec)
			}
		})
	}
}
