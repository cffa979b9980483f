// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

func TestMain(m *testing.M) { os.Exit(mounttest.Main(m)) }

// mode is one run of the suite.
type mode struct {
	name       string
	place      func(*testing.T) place
	parameters map[string]string
	// limits are the mutable parameters; none in mode hostpath.
	limits     map[string]string
	accessType string
	// sizeBytes of the volumes, and the size they are grown to.
	sizeBytes, expandBytes int64
}

// xfs is what is grown here: ext4 grows online only by a process with
// CAP_SYS_RESOURCE, which not every environment of tests has. It is at least 300 MB
// large. A disk has the size it has: it is "grown" to that size, and the filesystem
// may be ext4.
var modes = []mode{
	{
		name: "hostpath", place: hostpathPlace,
		parameters: map[string]string{"mode": "hostpath", "pool": poolName},
		accessType: "mount", sizeBytes: 64 * mib, expandBytes: 128 * mib,
	},
	{
		name: "reflinks", place: reflinkPlace,
		parameters: map[string]string{"mode": "hostpath", "pool": poolName},
		accessType: "mount", sizeBytes: 64 * mib, expandBytes: 128 * mib,
	},
	{
		name: "device", place: func(t *testing.T) place { return devicePlace(t, 12, 64*mib) },
		parameters: map[string]string{"mode": "device", "csi.storage.k8s.io/fstype": "ext4"},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "mount", sizeBytes: 64 * mib, expandBytes: 64 * mib,
	},
	{
		name: "device, block", place: func(t *testing.T) place { return devicePlace(t, 12, 64*mib) },
		parameters: map[string]string{"mode": "device"},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "block", sizeBytes: 64 * mib, expandBytes: 64 * mib,
	},
	{
		name: "lvm", place: func(t *testing.T) place { return lvmPlace(t, 8*gib) },
		parameters: map[string]string{"mode": "lvm", "pool": poolName, "csi.storage.k8s.io/fstype": "xfs"},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "mount", sizeBytes: 320 * mib, expandBytes: 448 * mib,
	},
	{
		name: "lvm, block", place: func(t *testing.T) place { return lvmPlace(t, 8*gib) },
		parameters: map[string]string{"mode": "lvm", "pool": poolName},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "block", sizeBytes: 64 * mib, expandBytes: 128 * mib,
	},
	{
		name: "thin", place: func(t *testing.T) place { return thinPlace(t, 16*gib) },
		parameters: map[string]string{"mode": "lvm", "pool": poolName, "csi.storage.k8s.io/fstype": "xfs"},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "mount", sizeBytes: 320 * mib, expandBytes: 448 * mib,
	},
	{
		name: "thin, block", place: func(t *testing.T) place { return thinPlace(t, 16*gib) },
		parameters: map[string]string{"mode": "lvm", "pool": poolName},
		limits:     map[string]string{"readIOPS": "100", "writeBandwidth": "10Mi"},
		accessType: "block", sizeBytes: 64 * mib, expandBytes: 128 * mib,
	},
}

// allowedSkips are what the suite may leave out, by its own words, and why.
var allowedSkips = map[string]string{
	"ControllerPublishVolume not supported":                "volumes live on their node: there is nothing to attach (attachRequired: false)",
	"ControllerPublishVolume.readonly field not supported": "as above",
	"Controller Publish, UnpublishVolume not supported":    "as above",
	"ControllerUnpublishVolume not supported":              "as above",
	"testnodevolumeattachlimit not enabled":                "the limit is the scheduler's to keep; without ControllerPublishVolume there is no call that could refuse",
	"No MaxVolumesPerNode":                                 "as above",
	"Snapshot not supported":                               "only volumes of lvm pools, and directories on a filesystem with reflinks, have snapshots; their runs leave none of these out",
	"ListSnapshots not supported":                          "as above",
	"CreateSnapshot not supported":                         "as above",
	"DeleteSnapshot not supported":                         "as above",
	"GetSnapshot not supported":                            "as above",
	"SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported":     "as above",
	"Volume Cloning not supported":                         "only those are cloned; their runs do not leave it out",
	"GroupControllerService not supported":                 "only volumes of thin pools have group snapshots; their runs do not leave it out",
	"VolumeGroupSnapshots not supported":                   "as above",
	"ControllerGetVolumeHealth not supported":              "alpha in CSI 1.13; health is told by conditions and metrics",
	"ControllerListVolumeHealth not supported":             "as above",
	"NodeGetVolumeHealth not supported":                    "as above",
	"NodeGetStorageHealth not supported":                   "as above",
}

// ofPools are those that the runs of lvm pools and of reflinks may not leave out, and ofThinPools those that
// the runs of thin ones may not.
var ofPools = []string{
	"Snapshot not supported", "ListSnapshots not supported", "CreateSnapshot not supported", "DeleteSnapshot not supported", "Volume Cloning not supported",
}

var ofThinPools = []string{
	"GroupControllerService not supported", "VolumeGroupSnapshots not supported",
}

func TestSanity(t *testing.T) {
	mounttest.RequireRoot(t)
	gomega.RegisterFailHandler(ginkgo.Fail)
	var nodes []*node
	for _, m := range append(slices.Clone(modes), realModes()...) {
		n := newNode(t, m.place(t))
		nodes = append(nodes, n)
		config := sanity.NewTestConfig()
		config.Address = "unix:" + n.socket
		config.TargetPath = filepath.Join(n.directory, "target")
		config.StagingPath = filepath.Join(n.directory, "staging")
		config.TestVolumeParameters = m.parameters
		config.TestVolumeMutableParameters = m.limits
		config.TestVolumeAccessType = m.accessType
		config.TestVolumeSize = m.sizeBytes
		config.TestVolumeExpandSize = m.expandBytes
		config.TestNodeVolumeAttachLimit = false
		ginkgo.Describe(m.name, func() { sanity.GinkgoTest(&config) })
	}
	ginkgo.ReportAfterSuite("skips", func(report ginkgo.Report) {
		for _, s := range report.SpecReports.WithState(types.SpecStateSkipped) {
			thin := strings.HasPrefix(s.FullText(), "thin")
			needed := thin && slices.Contains(ofThinPools, s.Failure.Message) ||
				(thin || strings.HasPrefix(s.FullText(), "lvm") || strings.HasPrefix(s.FullText(), "reflinks")) && slices.Contains(ofPools, s.Failure.Message)
			if _, ok := allowedSkips[s.Failure.Message]; !ok || needed {
				ginkgo.Fail("skipped without a reason of ours: " + s.FullText() + ": " + s.Failure.Message)
			}
		}
	})
	ginkgo.RunSpecs(t, "csi-sanity")
	for _, n := range nodes {
		n.requireClean(t)
	}
}
