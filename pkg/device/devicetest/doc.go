// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package devicetest offers a host with disks and a registry of them, for tests of
// whatever stands on package device.
//
// A Host's disks are loop devices (as root) or plain files. They can be pulled,
// put back, cloned with their serial and shuffled among their names, as a reboot
// does. The Registry keeps its claims in memory, outlives the backend over it,
// and can be made blind or be killed at any step.
package devicetest
