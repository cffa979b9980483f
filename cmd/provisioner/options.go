// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-dev/berth/internal/command"
)

// options of the command line.
type options struct {
	command.Common

	namespace        string
	csiSocket        string
	httpAddress      string
	leaderElect      bool
	workers          int
	provisionTimeout time.Duration
}

func (o *options) addFlags(fs *pflag.FlagSet, getenv func(string) string) {
	fs.StringVar(&o.namespace, "namespace", getenv("POD_NAMESPACE"), "namespace Berth runs in: of its lease and of the CSIStorageCapacities (default $POD_NAMESPACE)")
	fs.StringVar(&o.csiSocket, "csi-socket", "/csi/csi.sock", "unix socket of the CSI Controller service")
	fs.StringVar(&o.httpAddress, "http-address", ":9809", "address of /healthz, /readyz and /metrics")
	fs.BoolVar(&o.leaderElect, "leader-elect", true, "provision only while holding the lease berth-provisioner; the CSI service is served always")
	fs.IntVar(&o.workers, "workers", 64, "claims that are provisioned at once, and volumes that are deleted at once")
	fs.DurationVar(&o.provisionTimeout, "provision-timeout", time.Minute, "time for a node to make or delete a volume before it is left to the background")
	o.Common.AddFlags(fs)
}

// parseOptions reads and validates the command line. pflag.ErrHelp means that help
// was asked for and given.
func parseOptions(args []string, getenv func(string) string) (options, error) {
	var o options
	fs := pflag.NewFlagSet("provisioner", pflag.ContinueOnError)
	fs.SortFlags = false
	o.addFlags(fs, getenv)
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.ShowVersion {
		return o, nil
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return o, o.validate()
}

// validate names every option that is wrong.
func (o *options) validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if o.namespace == "" {
		add("--namespace is missing, and $POD_NAMESPACE is not set")
	} else if errs := validation.IsDNS1123Label(o.namespace); len(errs) > 0 {
		add("--namespace %q: %s", o.namespace, strings.Join(errs, "; "))
	}
	if !filepath.IsAbs(o.csiSocket) || len(o.csiSocket) > 107 { // sun_path of unix(7) holds 108 bytes
		add("--csi-socket %q must be an absolute path of at most 107 bytes", o.csiSocket)
	}
	if _, _, err := net.SplitHostPort(o.httpAddress); err != nil {
		add("--http-address: %w", err)
	}
	if o.workers < 1 || o.workers > 1000 {
		add("--workers %d must be between 1 and 1000", o.workers)
	}
	if o.provisionTimeout < 5*time.Second {
		add("--provision-timeout %s must be at least 5s", o.provisionTimeout)
	}
	if err := o.Common.Validate(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}
