// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// Harness says what a backend can do and makes places to test it in.
type Harness struct {
	// New makes an empty place and a backend over it. It is called by every test,
	// and what it makes is undone by t.Cleanup. Two places of one harness have the
	// same capacity.
	New func(t *testing.T) *Place
	// Access that the backend supports. The others must be refused.
	Access []volume.Access
	// CanGrow is false for a backend whose volumes have the size they have.
	CanGrow bool
	// WholeDisks are named by what they are: the next volume of one has its identity.
	WholeDisks bool
	// CanSnapshot is true for a volume.Snapshotter or volume.GroupSnapshotter whose places have snapshots. A snapshot
	// then takes as much room as its volume, and volumes of twice VolumeBytes can be made.
	CanSnapshot bool
	// CanSnapshotGroup is true for a volume.GroupSnapshotter whose places have groups.
	CanSnapshotGroup bool
}

// Place is storage with a backend over it, and the hooks by which the suite does
// to it what the world does. Nil hooks are allowed, but for Reboot.
type Place struct {
	// Backend under test. The suite replaces it by what Reboot returns.
	Backend volume.Backend
	// VolumeBytes is a size that the backend does not round, and Volumes how many
	// volumes of that size the empty place holds, at least 3, and not one more.
	VolumeBytes int64
	Volumes     int

	// Reboot forgets everything that a reboot of the host forgets: what the process
	// knows, kernel names, active devices. It returns the backend of the next boot
	// over the same storage, and disarms CrashAt.
	Reboot func(t *testing.T) volume.Backend
	// Settle waits until the background work (wipes, removal) of everything deleted
	// so far is done. Nil means there is none.
	Settle func(t *testing.T)
	// Tamper makes the storage of the volume be another than the record says.
	Tamper func(t *testing.T, id string, rec volume.Record)
	// Vanish takes the storage of the volume away from under the backend, in a way
	// that a successful observation proves.
	Vanish func(t *testing.T, id string, rec volume.Record)
	// Blind makes every observation of the place fail until undo is called.
	Blind func(t *testing.T) (undo func())
	// Hold uses the volume as a mount would, until release is called.
	Hold func(t *testing.T, loc volume.Location) (release func())
	// CrashAt kills the backend at the n-th step from now, counted from 0, that
	// changes or may change anything durable: from there on nothing it does has any
	// effect, and every call returns an error. crashed reports whether it came that
	// far. The suite raises n until it does not.
	CrashAt func(t *testing.T, n int) (crashed func() bool)
	// LoseCaches takes the power from the place: what the backend has not made durable
	// is lost. Reboot follows.
	LoseCaches func(t *testing.T)
}

// Run runs the conformance suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	s := suite{h}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Create", s.testCreate},
		{"CreateOverRemains", s.testCreateOverRemains},
		{"CreateFound", s.testCreateFound},
		{"CreateConcurrently", s.testCreateConcurrently},
		{"CreateInvalid", s.testCreateInvalid},
		{"CreateCancelled", s.testCreateCancelled},
		{"Delete", s.testDelete},
		{"DeleteWithoutRecord", s.testDeleteWithoutRecord},
		{"DeleteInUse", s.testDeleteInUse},
		{"DeleteErases", s.testDeleteErases},
		{"CapacityFull", s.testCapacityFull},
		{"CapacityBoundary", s.testCapacityBoundary},
		{"Locate", s.testLocate},
		{"LocateAfterReboot", s.testLocateAfterReboot},
		{"LocateTampered", s.testLocateTampered},
		{"LocateVanished", s.testLocateVanished},
		{"ForeignRecord", s.testForeignRecord},
		{"Blind", s.testBlind},
		{"Examine", s.testExamine},
		{"ExamineInUse", s.testExamineInUse},
		{"Grow", s.testGrow},
		{"GrowNoSpace", s.testGrowNoSpace},
		{"PowerLoss", s.testPowerLoss},
		{"PowerLossOfCopies", s.testPowerLossOfCopies},
		{"CrashInCreate", s.testCrashInCreate},
		{"CrashInCreateOverRemains", s.testCrashInCreateOverRemains},
		{"CrashInCreateThenDelete", s.testCrashInCreateThenDelete},
		{"CrashInGrow", s.testCrashInGrow},
		{"CrashInDelete", s.testCrashInDelete},
		{"Snapshot", s.testSnapshot},
		{"SnapshotRefused", s.testSnapshotRefused},
		{"CopyGrows", s.testCopyGrows},
		{"DeleteBeforeSnapshot", s.testDeleteBeforeSnapshot},
		{"CrashInClone", s.testCrashInClone},
		{"CrashInCloneThenDelete", s.testCrashInCloneThenDelete},
		{"CrashInSnapshot", s.testCrashInSnapshot},
		{"CrashInCopy", s.testCrashInCopy},
		{"CrashInDeleteSnapshot", s.testCrashInDeleteSnapshot},
		{"RandomOperations", s.testRandomOperations},
		{"GroupSnapshot", s.testGroupSnapshot},
		{"GroupSnapshotRefused", s.testGroupSnapshotRefused},
		{"CrashInGroupSnapshot", s.testCrashInGroupSnapshot},
		{"TakeOver", s.testTakeOver},
		{"TakeOverInUse", s.testTakeOverInUse},
		{"TakeOverOfAnOrigin", s.testTakeOverOfAnOrigin},
		{"PowerLossOfTakeOver", s.testPowerLossOfTakeOver},
		{"CrashInTakeOver", s.testCrashInTakeOver},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct {
	Harness
}

func (s suite) has(a volume.Access) bool {
	return slices.Contains(s.Access, a)
}

// access is the kind that most tests use: block where it is there, for its bytes
// can be written and read without a mount.
func (s suite) access() volume.Access {
	if s.has(volume.AccessBlock) {
		return volume.AccessBlock
	}
	return volume.AccessFilesystem
}
