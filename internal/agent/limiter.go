// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/volume"
)

// PodGroups are the cgroups of the node's pods; *cgroup.Pods is it.
type PodGroups interface {
	// Check reports whether pods can be limited; cgroup.ErrNotEnforceable says why not.
	Check() error
	// Limit has a pod held to these limits on a device and to no others.
	// volume.ErrNotFound: it has no cgroup yet, or none any more.
	Limit(uid string, device cgroup.Number, limits volume.Limits) error
}

// Devices is what the Limiter needs of the host's block devices; *mount.Mounter is it.
type Devices interface {
	Mounts
	// DeviceNumber returns the number of a block device.
	DeviceNumber(ctx context.Context, device string) (major, minor uint32, err error)
}

// PodEvents tells when cgroups of pods are made; *cgroup.Watch is it.
type PodEvents interface {
	// Follow tells of the containers of a pod too.
	Follow(uid string) error
}

// LimitsRecord is what the Limiter needs of the ledger.
type LimitsRecord interface {
	// ByName returns ledger.ErrNotFound when there is no such volume.
	ByName(name string) (ledger.Entry, error)
	// Put is durable when it returns nil.
	Put(e ledger.Entry) error
}

// Limiter holds the pods that have a volume to the limits that the ledger has for it. A
// pod's cgroup may be made after the volume was published to it, and systemd may take
// the controller, and with it the limits, away again before the pod's first container
// starts: so it looks again when the pod's cgroup, or one of its containers', is made.
type Limiter struct {
	Ledger LimitsRecord
	// Locate finds the storage of a volume; the caller holds the volume's lock.
	Locate  func(ctx context.Context, name string) (csi.Volume, error)
	Devices Devices
	Pods    PodGroups
	Events  PodEvents
	// Locks by volume name, shared with the CSI node service.
	Locks *Locks
	// Failed is told of a volume whose limits could not be put in force.
	Failed func(name string)
	Log    *slog.Logger

	mu sync.Mutex
	// held are the volumes whose limits were put in force since the agent's start.
	held map[string]bool
	// volumes that are limited, by the pods that they are published to.
	volumes map[string]map[string]bool
}

// Check reports whether this node can hold pods to limits.
func (l *Limiter) Check() error { return l.Pods.Check() }

// Set writes the limits of a volume into the ledger and puts them in force for every pod
// that has the volume; zero limits take away those there are. A repeated call changes
// nothing. cgroup.ErrNotEnforceable: the node cannot; the ledger then still has the limits
// of before, unless a pod was needed to find that out.
func (l *Limiter) Set(ctx context.Context, name string, limits volume.Limits) error {
	unlock, err := l.Locks.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if !limits.IsZero() {
		if err := l.Check(); err != nil {
			return err
		}
	}
	e, err := l.Ledger.ByName(name)
	if err != nil {
		return err
	}
	if e.LimitsOrNone() != limits {
		e.Limits = nil
		if !limits.IsZero() {
			e.Limits = &limits
		}
		// Before the cgroups, so that a pod that comes meanwhile gets the same.
		if err := l.Ledger.Put(e); err != nil {
			return err
		}
	}
	return l.enforce(ctx, name, limits)
}

// Published puts the limits of a volume in force for the pods that have it. It costs
// nothing for a volume without limits. A failure is told to Failed, and fails nobody: the
// volume is there for the pod all the same.
func (l *Limiter) Published(ctx context.Context, name string) {
	e, err := l.Ledger.ByName(name)
	if err != nil || e.Limits == nil {
		return
	}
	if err := l.again(ctx, name); err != nil && ctx.Err() == nil {
		l.Log.WarnContext(ctx, "The limits of a volume are not in force", "volume", name, "error", err)
	} else if err == nil {
		return
	}
	l.mu.Lock()
	delete(l.held, name)
	l.mu.Unlock()
	l.Failed(name)
}

// Resume puts the limits of the ledger in force when the agent begins, also while the API
// server is away. What cannot be found yet is left to the reconciler.
func (l *Limiter) Resume(ctx context.Context, entries []ledger.Entry) {
	for _, e := range entries {
		if e.Limits == nil || ctx.Err() != nil {
			continue
		}
		if err := l.again(ctx, e.Name); err != nil {
			l.Log.InfoContext(ctx, "The limits of a volume wait", "volume", e.Name, "cause", err)
		}
	}
}

// again puts the limits that the ledger has in force.
func (l *Limiter) again(ctx context.Context, name string) error {
	unlock, err := l.Locks.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := l.Ledger.ByName(name)
	if err != nil || e.Limits == nil {
		return err
	}
	return l.enforce(ctx, name, *e.Limits)
}

// PodChanged looks at the volumes of a pod whose cgroup, or one of whose containers'
// cgroups, was made; of every pod for cgroup.Everything.
func (l *Limiter) PodChanged(ctx context.Context, uid string) {
	l.mu.Lock()
	names := map[string]bool{}
	if uid == cgroup.Everything {
		for _, some := range l.volumes {
			maps.Copy(names, some)
		}
	} else {
		maps.Copy(names, l.volumes[uid])
	}
	l.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		l.Published(ctx, name)
	}
}

// IsHeld reports whether the limits of a volume were put in force since the agent's start.
func (l *Limiter) IsHeld(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[name]
}

// Forget drops what is known of a volume that is gone.
func (l *Limiter) Forget(name string) { l.remember(name, nil, false) }

// enforce puts limits in force for every pod that has the volume. The caller holds the
// volume's lock.
func (l *Limiter) enforce(ctx context.Context, name string, limits volume.Limits) error {
	v, err := l.Locate(ctx, name)
	if err != nil {
		return err
	}
	var uids []string
	// An encrypted volume that is not open has no pods.
	if device := v.InUse().Device; device != "" || v.Encryption == "" {
		if uids, err = l.podsOf(ctx, device); err != nil {
			return err
		}
	}
	limited := !limits.IsZero()
	if limited {
		// Before the pods are looked for: a cgroup that is made meanwhile is told of.
		l.remember(name, uids, false)
	}
	if len(uids) > 0 {
		major, minor, err := l.Devices.DeviceNumber(ctx, v.InUse().Device)
		if err != nil {
			return fmt.Errorf("find the number of the device: %w", err)
		}
		var errs []error
		for _, uid := range uids {
			errs = append(errs, l.limit(uid, cgroup.Number{Major: major, Minor: minor}, limits))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	if limited {
		l.remember(name, uids, true)
	} else {
		l.remember(name, nil, false)
	}
	return nil
}

func (l *Limiter) limit(uid string, device cgroup.Number, limits volume.Limits) error {
	if !limits.IsZero() {
		if err := l.Events.Follow(uid); err != nil {
			return err
		}
	}
	err := l.Pods.Limit(uid, device, limits)
	if errors.Is(err, volume.ErrNotFound) {
		return nil // it will be told of when it comes
	}
	return err
}

// remember notes which pods have a volume with limits.
func (l *Limiter) remember(name string, uids []string, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held, l.volumes = map[string]bool{}, map[string]map[string]bool{}
	}
	for uid, names := range l.volumes {
		if delete(names, name); len(names) == 0 {
			delete(l.volumes, uid)
		}
	}
	for _, uid := range uids {
		if l.volumes[uid] == nil {
			l.volumes[uid] = map[string]bool{}
		}
		l.volumes[uid][name] = true
	}
	if held {
		l.held[name] = true
	} else {
		delete(l.held, name)
	}
}

// podsOf returns the UIDs of the pods that a block device, or its filesystem, is published
// to: the mounts say it, also after a restart.
func (l *Limiter) podsOf(ctx context.Context, device string) ([]string, error) {
	targets, err := l.Devices.MountsOf(ctx, device)
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, target := range targets {
		if uid, ok := podOfTarget(target); ok && !slices.Contains(uids, uid) {
			uids = append(uids, uid)
		}
	}
	return uids, nil
}

// targetPattern is what kubelet's target paths have in common, whatever its folder: of a
// filesystem pods/UID/volumes/kubernetes.io~csi/NAME/mount, of a block device
// plugins/kubernetes.io/csi/volumeDevices/publish/NAME/UID (kubelet's pkg/volume/csi).
var targetPattern = regexp.MustCompile(`/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/volumes/kubernetes\.io~csi/[^/]+/mount$` +
	`|/kubernetes\.io/csi/volumeDevices/publish/[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// podOfTarget returns the UID of the pod that a target path belongs to.
func podOfTarget(path string) (uid string, ok bool) {
	found := targetPattern.FindStringSubmatch(path)
	if found == nil {
		return "", false
	}
	return found[1] + found[2], true // one of the two is empty
}
