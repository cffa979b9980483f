// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package topolvm pins TopoLVM. It is a module of its own, apart from the other
// peers, so that TopoLVM is built with the dependencies that its release has.
package topolvm

import _ "github.com/topolvm/topolvm/cmd/hypertopolvm"
