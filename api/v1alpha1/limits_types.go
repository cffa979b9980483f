// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// VolumeLimits bound what each pod that has the volume can do with it. What is not
// set is not limited. The agent writes them into the io.max of the pod's cgroup.
//
// +kubebuilder:validation:MinProperties=1
type VolumeLimits struct {
	// ReadIOPS is how many reads a pod is served in a second.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	ReadIOPS int64 `json:"readIOPS,omitempty"`

	// WriteIOPS is how many writes a pod is served in a second.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	WriteIOPS int64 `json:"writeIOPS,omitempty"`

	// ReadBytesPerSecond is how much a pod can read.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ReadBytesPerSecond int64 `json:"readBytesPerSecond,omitempty"`

	// WriteBytesPerSecond is how much a pod can write.
	// +optional
	// +kubebuilder:validation:Minimum=1
	WriteBytesPerSecond int64 `json:"writeBytesPerSecond,omitempty"`
}

// MaxIOPS is the largest limit of IOPS: the kernel counts in 32 bits, and the number
// after it is no limit (block/blk-throttle.c).
const MaxIOPS = 1<<32 - 2

// LocalVolumeLimited is the condition that stands while a LocalVolume has limits. True:
// they are in force. Otherwise reason and message say why not.
const LocalVolumeLimited = "Limited"

const (
	// ReasonInForce: each pod that has the volume is held to status.limits.
	ReasonInForce = "InForce"
	// ReasonNotEnforceable: the node cannot hold pods to limits: it has no cgroup v2, or
	// its kernel or kubelet does without the controller io. A new volume is not made here
	// then. Final.
	ReasonNotEnforceable = "NotEnforceable"
)
