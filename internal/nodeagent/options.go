// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/mount"
)

// PodEvents tells when cgroups of pods are made; *cgroup.Watch is it.
type PodEvents interface {
	agent.PodEvents
	// Run calls tell with the UID of a pod, or with cgroup.Everything, until the context
	// ends.
	Run(ctx context.Context, tell func(uid string)) error
}

// Options of an Agent. All but WipeRateBytesPerSecond, HealthInterval, PodEvents, Settled
// and SharedProcess are needed.
type Options struct {
	// Config is how the API server is reached, as this node's agent.
	Config *rest.Config
	// NodeName is the name of the Node object, and Namespace where Berth runs.
	NodeName, Namespace string
	// MachineID is the content of the host's /etc/machine-id.
	MachineID string
	// Host runs the host's programs; *hostexec.Host is it. HostRoot is where this process
	// sees the host's files: "/", or "/proc/1/root".
	Host     mount.Host
	HostRoot string
	// StateDir has the node's own records, as this process sees it, and HostStateDir is the
	// same directory as the host calls it. The caller holds the node's lock.
	StateDir, HostStateDir string
	// Ledger is opened in StateDir.
	Ledger *ledger.Ledger

	// CSISocket is the unix socket of the CSI Node service, Endpoint the same as kubelet
	// sees it, and RegistrationDir the directory that kubelet watches for plugins.
	CSISocket, Endpoint, RegistrationDir string

	// HealthInterval is the time between two looks at the health of one disk; 0 turns them
	// off.
	HealthInterval time.Duration
	// WipeParallelism is how many released disks are wiped at once, and
	// WipeRateBytesPerSecond what these wipes write together; 0 is as much as they take.
	WipeParallelism        int
	WipeRateBytesPerSecond int64
	// TrashEntriesPerSecond is how many entries of deleted volumes each hostpath pool
	// removes in a second at most.
	TrashEntriesPerSecond int

	// Instants keeps volumes still for group snapshots.
	Instants lvm.Instants
	// PodEvents tells of pods; nil listens to the kernel, with an inotify instance.
	PodEvents PodEvents
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
	// Settled is called once, when everything was looked at; nil calls nobody.
	Settled func()
	// SharedProcess says that other agents run in this process: the metrics that
	// controller-runtime keeps of controllers are then of all of them.
	SharedProcess bool
	Log           *slog.Logger
}
