// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubectl is what `kubectl berth` does: it puts into one table, or one answer in
// words, what is otherwise spread over several kinds of objects.
//
// It works by the user's own rights. Only forget-node, and import and orphans purge with --yes,
// change anything in the cluster.
//
// Exit codes: 0 all is well, 1 something is not (it was printed), 2 the command line is wrong,
// 3 the cluster could not be asked.
package kubectl
