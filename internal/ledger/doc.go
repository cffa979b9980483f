// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ledger is a node's own durable record of its volumes: one small JSON
// file per volume on the host's disk.
//
// It has two purposes. It is written ahead of what happens to the disks, so that
// after a crash or a loss of power the agent knows what it had begun, also when
// the API objects were rolled back to an older state: a volume that the ledger
// says was ever formatted is never formatted again. And it lets volumes be staged
// and published while the API server is away.
//
// A file that cannot be read or understood is an error that names it. It is never
// taken for "no record".
package ledger
