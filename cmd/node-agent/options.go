// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-dev/berth/internal/command"
	"github.com/berth-dev/berth/pkg/hostpath"
)

// options of the command line.
type options struct {
	command.Common

	nodeName         string
	namespace        string
	hostRoot         string
	stateDir         string
	csiSocket        string
	kubeletPluginDir string
	registrationDir  string
	httpAddress      string
	healthInterval   time.Duration
	wipeParallelism  int
	wipeRateText     string
	wipeRate         resource.Quantity
	trashRate        int
}

func (o *options) addFlags(fs *pflag.FlagSet, getenv func(string) string) {
	fs.StringVar(&o.nodeName, "node-name", getenv("NODE_NAME"), "name of this node's Node object (default $NODE_NAME)")
	fs.StringVar(&o.namespace, "namespace", getenv("POD_NAMESPACE"), "namespace Berth runs in: of berth-config and of the CSIStorageCapacities (default $POD_NAMESPACE)")
	fs.StringVar(&o.hostRoot, "host-root", "/proc/1/root", "where the host is: /proc/PID/root, or / when this process runs on the host itself")
	fs.StringVar(&o.stateDir, "state-dir", "/var/lib/berth", "directory of the host for the node's own records; it must outlive the pod")
	fs.StringVar(&o.csiSocket, "csi-socket", "/csi/csi.sock", "unix socket of the CSI Node service, as this process sees it")
	fs.StringVar(&o.kubeletPluginDir, "kubelet-plugin-dir", "/var/lib/kubelet/plugins/berth.dev", "directory of the CSI socket, as kubelet sees it")
	fs.StringVar(&o.registrationDir, "registration-dir", "/registration", "directory that kubelet watches for plugins, as this process sees it")
	fs.StringVar(&o.httpAddress, "http-address", ":9808", "address of /healthz, /readyz and /metrics")
	fs.IntVar(&o.wipeParallelism, "wipe-parallelism", 2, "released disks that are wiped at once, 1 to 64")
	fs.StringVar(&o.wipeRateText, "wipe-rate", "0", "bytes per second that the wipes of released disks by zeroes write together, as 200Mi; 0 is as much as the disks take")
	fs.IntVar(&o.trashRate, "trash-rate", hostpath.DefaultEntriesPerSecond, "files and directories of deleted volumes that each hostpath pool removes in a second at most, 1 to 1000000")
	fs.DurationVar(&o.healthInterval, "health-interval", 30*time.Minute, "time between two looks at the health of one disk, at least 10s; 0 turns them off")
	o.Common.AddFlags(fs)
}

// parseOptions reads and validates the command line. pflag.ErrHelp means that help
// was asked for and given.
func parseOptions(args []string, getenv func(string) string) (options, error) {
	var o options
	fs := pflag.NewFlagSet("node-agent", pflag.ContinueOnError)
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

var procRoot = regexp.MustCompile(`^/proc/[1-9][0-9]*/root$`)

// validate names every option that is wrong.
func (o *options) validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	// The node's name becomes the value of a label, which is shorter than a name.
	if o.nodeName == "" {
		add("--node-name is missing, and $NODE_NAME is not set")
	} else if errs := append(validation.IsDNS1123Subdomain(o.nodeName), validation.IsValidLabelValue(o.nodeName)...); len(errs) > 0 {
		add("--node-name %q: %s", o.nodeName, strings.Join(errs, "; "))
	}
	if o.namespace == "" {
		add("--namespace is missing, and $POD_NAMESPACE is not set")
	} else if errs := validation.IsDNS1123Label(o.namespace); len(errs) > 0 {
		add("--namespace %q: %s", o.namespace, strings.Join(errs, "; "))
	}
	if o.hostRoot != "/" && !procRoot.MatchString(o.hostRoot) {
		add("--host-root %q must be / or /proc/PID/root", o.hostRoot)
	}
	for _, path := range []struct{ flag, value string }{
		{"state-dir", o.stateDir}, {"csi-socket", o.csiSocket}, {"kubelet-plugin-dir", o.kubeletPluginDir}, {"registration-dir", o.registrationDir},
	} {
		if !filepath.IsAbs(path.value) || filepath.Clean(path.value) != path.value || path.value == "/" {
			add("--%s %q must be an absolute, clean path, and not /", path.flag, path.value)
		}
	}
	if len(o.csiSocket) > maxSocketPath || len(o.endpoint()) > maxSocketPath {
		add("--csi-socket and --kubelet-plugin-dir make a path of more than %d bytes", maxSocketPath)
	}
	if _, _, err := net.SplitHostPort(o.httpAddress); err != nil {
		add("--http-address: %w", err)
	}
	if o.wipeParallelism < 1 || o.wipeParallelism > 64 {
		add("--wipe-parallelism %d must be between 1 and 64", o.wipeParallelism)
	}
	if rate, err := resource.ParseQuantity(o.wipeRateText); err != nil || rate.Sign() < 0 || rate.Sign() > 0 && rate.Value() < 1<<20 {
		add("--wipe-rate %q must be 0 or at least 1Mi, as a quantity", o.wipeRateText)
	} else {
		o.wipeRate = rate
	}
	if o.trashRate < 1 || o.trashRate > 1_000_000 {
		add("--trash-rate %d must be between 1 and 1000000", o.trashRate)
	}
	if o.healthInterval != 0 && o.healthInterval < 10*time.Second {
		add("--health-interval %s must be 0 or at least 10s", o.healthInterval)
	}
	if err := o.Common.Validate(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// maxSocketPath is what sun_path of unix(7) holds besides the final zero.
const maxSocketPath = 107

// endpoint is the CSI socket as kubelet sees it.
func (o *options) endpoint() string {
	return filepath.Join(o.kubeletPluginDir, filepath.Base(o.csiSocket))
}

// onHost is where this process sees a path of the host.
func (o *options) onHost(path string) string { return filepath.Join(o.hostRoot, path) }
