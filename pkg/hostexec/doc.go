// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostexec runs the host's programs, and functions, in the host's
// namespaces. It is the only package of the product that imports os/exec.
//
// The agent's image holds one binary and nothing else: lvm, mkfs and fsck are the
// host's own, so that they fit its kernel, its lvm.conf and its udev. Entering
// only the mount namespace is not enough: lvm waits for udev on a semaphore that
// lives in the host's IPC namespace, and would hang.
package hostexec
