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

	// AnnotationNeverReady is true on a LocalVolume that the provisioner deletes because its status
	// never said that it stands. Whether it does, the agent's ledger knows, which no restore of etcd
	// makes older.
	AnnotationNeverReady = "berth.dev/never-ready"
	// AnnotationAllowDelete is true where a person lets an object be deleted.
	AnnotationAllowDelete = "berth.dev/allow-delete"

	// LabelIdentity is on every BlockDevice of strong identity: a digest of it without
	// the node, by which the same disk is found on another node.
	LabelIdentity = "berth.dev/identity"

	// ConfigMapName is the ConfigMap with the disk filters, in the namespace Berth
	// runs in.
	ConfigMapName = "berth-config"

	// MetadataConfigMapPrefix begins the names of the ConfigMaps with copies of the metadata
	// of volume groups; the node's name follows.
	MetadataConfigMapPrefix = "lvm-metadata."
	// LabelNode and LabelPool are on them, where the names fit a label.
	LabelNode = "berth.dev/node"
	LabelPool = "berth.dev/pool"
	// Annotations of them: the UUID of the volume group; the generation that its copy is of,
	// when that was made, and where it is kept; the same of the dump of its thin pool.
	AnnotationVGUUID            = "berth.dev/vg-uuid"
	AnnotationGeneration        = "berth.dev/generation"
	AnnotationCopiedAt          = "berth.dev/copied-at"
	AnnotationGroupKept         = "berth.dev/volume-group-kept"
	AnnotationThinGeneration    = "berth.dev/thin-pool-generation"
	AnnotationThinTransactionID = "berth.dev/thin-pool-transaction-id"
	AnnotationDumpedAt          = "berth.dev/thin-pool-dumped-at"
	AnnotationThinKept          = "berth.dev/thin-pool-kept"
)
