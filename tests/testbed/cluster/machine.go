// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"os"

	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
	"github.com/berth-dev/berth/tests/testbed/progress"
)

// BuildMachine builds what a node's machine is booted from, as far as it is missing, and starts
// nothing that stays. Dir and Out of the options count. It may run beside a testbed of the same
// folder, with which it shares what is built.
func BuildMachine(ctx context.Context, options UpOptions) (nodeimage.Boot, error) {
	if err := options.complete(); err != nil {
		return nodeimage.Boot{}, err
	}
	if err := CheckHost(); err != nil {
		return nodeimage.Boot{}, err
	}
	repository, err := findRepository()
	if err != nil {
		return nodeimage.Boot{}, err
	}
	const otherSteps = 7 // of build, beside the programs
	u := &up{
		Cluster: &Cluster{dir: options.Dir, state: state{Programs: map[string]string{}}},
		options: options, repository: repository, printer: progress.New(options.Out, len(kube.Programs)+otherSteps),
	}
	if err := os.MkdirAll(u.logDir(), 0o755); err != nil {
		return nodeimage.Boot{}, err
	}
	if err := u.build(ctx); err != nil {
		explain(options.Out, err)
		return nodeimage.Boot{}, err
	}
	return nodeimage.Boot{QEMU: u.state.QEMU, Accel: u.state.Accel, BaseDir: u.state.ImageDir}, nil
}
