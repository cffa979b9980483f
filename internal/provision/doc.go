// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package provision turns claims into LocalVolumes and PersistentVolumes.
//
// Volumes creates, grows and deletes LocalVolume objects and waits for the
// node's agent to answer; the provisioner of sig-storage-lib and the CSI
// Controller service both stand on it. Provisioner is what the library calls.
// Advisor tells users why a claim will never get as far as the library.
package provision
