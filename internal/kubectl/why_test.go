// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// withCondition adds a condition that is False to the volume of claim data.
func withCondition(c *cluster, kind, reason, message string) {
	lv := get[*berth.LocalVolume](c, "LocalVolume//pv-data")
	lv.Status.Conditions = append(lv.Status.Conditions, condition(kind, false, reason, message)...)
}

// growing lets claim data ask for 2Gi where it has 1Gi, with a condition that is True.
func growing(c *cluster, kind corev1.PersistentVolumeClaimConditionType, message string) {
	claim := get[*corev1.PersistentVolumeClaim](c, "PersistentVolumeClaim/default/data")
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = *gib(2)
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: *gib(1)}
	claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: kind, Status: corev1.ConditionTrue, Message: message}}
}

// modifying lets claim data ask for VolumeAttributesClass gold, with an error if there is one.
func modifying(c *cluster, status corev1.PersistentVolumeClaimModifyVolumeStatus, failure string) {
	claim := get[*corev1.PersistentVolumeClaim](c, "PersistentVolumeClaim/default/data")
	class := "gold"
	claim.Spec.VolumeAttributesClassName = &class
	claim.Status.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: class, Status: status}
	if failure != "" {
		claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimVolumeModifyVolumeError, Status: corev1.ConditionTrue, Message: failure}}
	}
}

func TestWhy(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*cluster)
		about  string
		code   int
		says   []string
		not    string
	}{
		"a claim that is used": {about: "pvc/data", says: []string{"1Gi on node node1 (mode lvm, pool fast) is ready", "Pod db uses it."}},
		"a claim of another namespace": {
			about: "pvc/elsewhere/data", code: exitTrouble, says: []string{"no claim data in namespace elsewhere"},
		},
		"a claim that waits for a pod": {
			change: func(c *cluster) { c.add(claimOf("new", "fast", "")) },
			about:  "pvc/new", says: []string{"waits for a pod", "WaitForFirstConsumer"},
		},
		"a misspelt class": {
			change: func(c *cluster) { c.add(claimOf("new", "misspelt", ""), podOf("p", "", "new")) },
			about:  "pvc/new", code: exitTrouble, says: []string{`"wipee"`, `did you mean "wipe"?`},
		},
		"a claim that is too large": {
			change: func(c *cluster) {
				claim := claimOf("new", "fast", "")
				claim.Spec.Resources.Requests[corev1.ResourceStorage] = *gib(50)
				c.add(claim)
			},
			about: "pvc/new", code: exitTrouble, says: []string{"50Gi is larger than the largest free space", "node1"},
		},
		"a class that does not exist": {
			change: func(c *cluster) { c.add(claimOf("new", "none", "")) },
			about:  "pvc/new", code: exitTrouble, says: []string{`StorageClass "none" does not exist`},
		},
		"no class": {
			change: func(c *cluster) { c.add(claimOf("new", "", "")) },
			about:  "pvc/new", code: exitTrouble, says: []string{"names no StorageClass"},
		},
		"a class of somebody else": {
			change: func(c *cluster) { c.add(claimOf("new", "theirs", "")) },
			about:  "pvc/new", says: []string{"other.example.com, not of Berth"},
		},
		"a volume that the node cannot make": {
			change: func(c *cluster) {
				c.add(claimOf("new", "fast", ""), podOf("p", "node1", "new"), &berth.LocalVolume{
					ObjectMeta: metav1.ObjectMeta{Name: "pvc-new"},
					Spec:       berth.LocalVolumeSpec{NodeName: "node1", Mode: berth.ModeLVM, Pool: "fast", SizeBytes: 1 << 30, ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "new", UID: "uid-new"}},
					Status:     berth.LocalVolumeStatus{Conditions: condition(berth.LocalVolumeReady, false, "ToolMissing", "mkfs.xfs is not installed")},
				})
			},
			about: "pvc/new", code: exitTrouble, says: []string{"not ready, ToolMissing: mkfs.xfs is not installed"},
		},
		"a volume whose node has no agent": {
			change: func(c *cluster) {
				delete(c.objects, "Pod/berth-system/agent-node1")
				get[*berth.LocalVolume](c, "LocalVolume//pv-data").Status.Conditions = nil
			},
			about: "pvc/data", code: exitTrouble, says: []string{"the node's agent has not answered yet", "No agent of Berth is on it"},
		},
		"a pod that cannot be scheduled": {
			change: func(c *cluster) {
				pod := podOf("db", "", "data")
				pod.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available: 1 Insufficient cpu."}}}
				c.add(pod)
			},
			about: "pvc/data", code: exitTrouble, says: []string{"Pod db has no node yet: 0/2 nodes are available", "It can only run on node node1"},
		},
		"a pod that does not start": {
			change: func(c *cluster) {
				pod := podOf("db", "node1", "data")
				pod.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}}
				c.add(pod, &corev1.Event{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, Type: corev1.EventTypeWarning, Reason: "FailedMount", Message: "volume pv-data: identity differs",
					InvolvedObject: corev1.ObjectReference{Kind: "Pod", UID: "uid-db"},
				})
			},
			about: "pvc/data", code: exitTrouble, says: []string{"Pod db does not run yet: container c waits: ContainerCreating", "Event FailedMount: volume pv-data: identity differs"},
		},
		"a claim whose volume is gone": {
			change: func(c *cluster) { delete(c.objects, "PersistentVolume//pv-data") },
			about:  "pvc/data", code: exitTrouble, says: []string{"PersistentVolume pv-data, which is gone"},
		},
		"a claim whose LocalVolume is gone": {
			change: func(c *cluster) { delete(c.objects, "LocalVolume//pv-data") },
			about:  "pvc/data", code: exitTrouble, says: []string{"the LocalVolume pv-data of that is gone"},
		},
		"a claim that is being deleted and used": {
			change: func(c *cluster) {
				claim := get[*corev1.PersistentVolumeClaim](c, "PersistentVolumeClaim/default/data")
				now := metav1.Now()
				claim.DeletionTimestamp, claim.Finalizers = &now, []string{"kubernetes.io/pvc-protection"}
			},
			about: "pvc/data", code: exitTrouble, says: []string{"waits because pods use it: db"},
		},
		"a volume that is not well": {
			change: func(c *cluster) { withCondition(c, berth.LocalVolumeHealthy, "DiskGone", "disk S1 is gone") },
			about:  "pvc/data", code: exitTrouble, says: []string{"is ready", "It is not well, DiskGone: disk S1 is gone"},
		},
		"a volume without its limits": {
			change: func(c *cluster) {
				withCondition(c, berth.LocalVolumeLimited, "NotEnforceable", "the node has no cgroup v2")
			},
			about: "pvc/data", code: exitTrouble, says: []string{"Its limits are not in force, NotEnforceable: the node has no cgroup v2"},
		},
		"a claim that cannot grow": {
			change: func(c *cluster) {
				withCondition(c, berth.LocalVolumeResized, "NoSpace", "pool fast-node1 has 1Gi free")
				growing(c, corev1.PersistentVolumeClaimControllerResizeError, "out of range")
			},
			about: "pvc/data", code: exitTrouble, says: []string{"Its node could not make it larger, NoSpace: pool fast-node1 has 1Gi free", "It asks for 2Gi and has 1Gi, and does not grow: out of range"},
		},
		"a claim that grows with a pod": {
			change: func(c *cluster) { growing(c, corev1.PersistentVolumeClaimFileSystemResizePending, "") },
			about:  "pvc/data", code: exitTrouble, says: []string{"It asks for 2Gi and has 1Gi: its filesystem grows when a pod has it"},
		},
		"a claim that grows": {
			change: func(c *cluster) { growing(c, corev1.PersistentVolumeClaimResizing, "") },
			about:  "pvc/data", code: exitTrouble, says: []string{"It asks for 2Gi and has 1Gi: it is being made larger"},
		},
		"an attributes class that is wrong": {
			change: func(c *cluster) {
				modifying(c, corev1.PersistentVolumeClaimModifyVolumeInfeasible, `parameter "iops" is not known`)
			},
			about: "pvc/data", code: exitTrouble, says: []string{`It cannot have VolumeAttributesClass "gold": parameter "iops" is not known`},
		},
		"an attributes class that is tried again": {
			change: func(c *cluster) {
				modifying(c, corev1.PersistentVolumeClaimModifyVolumeInProgress, "node1 does not answer")
			},
			about: "pvc/data", code: exitTrouble, says: []string{`"gold" is not in force yet, and is tried again: node1 does not answer`},
		},
		"an attributes class that is being brought into force": {
			change: func(c *cluster) { modifying(c, corev1.PersistentVolumeClaimModifyVolumeInProgress, "") },
			about:  "pvc/data", code: exitTrouble, says: []string{`"gold" is being brought into force`},
		},
		"an attributes class that does not exist": {
			change: func(c *cluster) { modifying(c, corev1.PersistentVolumeClaimModifyVolumePending, "") },
			about:  "pvc/data", code: exitTrouble, says: []string{`Its VolumeAttributesClass "gold" does not exist`},
		},
		"an attributes class that came too late": {
			change: func(c *cluster) {
				modifying(c, corev1.PersistentVolumeClaimModifyVolumePending, "")
				c.add(&storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, DriverName: berth.DriverName})
			},
			about: "pvc/data", code: exitTrouble, says: []string{`did not find VolumeAttributesClass "gold"`, "It exists now"},
		},
		"a disk that is used":      {about: "disk/S1", says: []string{"/dev/sdb on node node1, 10Gi", "used by Pool fast-node1"}, not: "cannot"},
		"a disk that cannot be":    {about: "disk/node1:/dev/sdc", code: exitTrouble, says: []string{"Cheetah, serial number S2", "cannot be used, InUse: it has a partition table"}},
		"a disk that can be":       {about: "disk/bd-3", says: []string{"It can be used: it is blank"}},
		"two disks of one path":    {about: "disk/sdc", code: exitTrouble, says: []string{"2 disks are called sdc", "node1:/dev/sdc", "node2:/dev/sdc"}},
		"a disk that nobody shows": {about: "disk/nvme0n1", code: exitTrouble, says: []string{"No node shows a disk"}},
		"a node":                   {about: "node/node1", says: []string{"registered with kubelet", "Pool fast-node1 is healthy: 5Gi of 10Gi", "1 volumes, and 2 disks: 1 in use by Berth, 0 free, 1 that cannot"}},
		"a node that is cordoned": {
			change: func(c *cluster) { c.objects["Node//node1"].(*corev1.Node).Spec.Unschedulable = true },
			about:  "node/node1", says: []string{"It is cordoned", "wait until it is uncordoned: default/data (pod db). Their data stay there"},
		},
		"a node that does not exist":     {about: "node/node3", code: exitTrouble, says: []string{"There is no node node3", "No agent"}},
		"a node that kubelet left alone": {change: func(c *cluster) { delete(c.objects, "CSINode//node1") }, about: "node/node1", code: exitTrouble, says: []string{"does not know the driver berth.dev"}},
		"a node that is not ready": {
			change: func(c *cluster) {
				get[*corev1.Node](c, "Node//node1").Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Message: "Kubelet stopped posting node status."}
			},
			about: "node/node1", code: exitTrouble, says: []string{"It is not ready since", "Kubelet stopped posting"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			if tc.change != nil {
				tc.change(c)
			}
			code, out, errs := c.run(t, "why", tc.about)
			if code != tc.code || errs != "" {
				t.Errorf("exit code %d, want %d; %s", code, tc.code, errs)
			}
			for _, part := range tc.says {
				if !strings.Contains(out, part) {
					t.Errorf("it does not say %q:\n%s", part, out)
				}
			}
			if tc.not != "" && strings.Contains(out, tc.not) {
				t.Errorf("it says %q:\n%s", tc.not, out)
			}
		})
	}
}
