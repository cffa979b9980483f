// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

const (
	// DriverName is the one name everywhere: StorageClass.provisioner, the
	// CSIDriver object, PersistentVolume.spec.csi.driver and the registration with
	// kubelet. The scheduler looks the CSIDriver up by the class's provisioner, so
	// the names cannot differ.
	DriverName = "berth.dev"

	// TopologyKeyNode is the topology segment of a node; its value is the name of
	// the Node object. Kubelet labels the node with it when the agent registers.
	TopologyKeyNode = "topology.berth.dev/node"

	// AgentFinalizer keeps a LocalVolume until the agent of its node has proven
	// that nothing of it is left on the disk. The provisioner sets it when it
	// creates the object, so that no volume exists without it. The agent sets it on
	// the Pools it makes and on the BlockDevices that are claimed, for the same end.
	AgentFinalizer = "berth.dev/agent"

	// LabelIdentity is on every BlockDevice of strong identity: a digest of it without
	// the node, by which the same disk is found on another node.
	LabelIdentity = "berth.dev/identity"

	// ConfigMapName is the ConfigMap with the disk filters, in the namespace Berth
	// runs in.
	ConfigMapName = "berth-config"
)
