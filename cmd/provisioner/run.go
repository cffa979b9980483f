// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/command"
	"github.com/berth-dev/berth/internal/csi"
	bmetrics "github.com/berth-dev/berth/internal/metrics"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/rewind"
)

// stopGrace is how long what is under way may take after the first signal.
const stopGrace = 10 * time.Second

// run provisions until the context ends.
func run(ctx context.Context, o options, log *slog.Logger) error {
	if limit := command.RespectMemoryLimit("/sys/fs/cgroup"); limit > 0 {
		log.Info("garbage is collected before the container's limit of memory is reached", "softLimitBytes", limit)
	}
	cfg, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	cfg.UserAgent = "berth-provisioner/" + command.Version()
	return runWith(ctx, cfg, o, log)
}

// runWith runs against the API server of the configuration.
func runWith(ctx context.Context, cfg *rest.Config, o options, log *slog.Logger) error {
	log.Info("starting", "version", command.Version(), "namespace", o.namespace, "workers", o.workers, "provisionTimeout", o.provisionTimeout.String())
	mgr, err := newManager(cfg, o, log)
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	sleeping, ok := mgr.GetCache().(*sleepingCache)
	if !ok {
		return fmt.Errorf("the manager's cache is a %T", mgr.GetCache())
	}
	leader := &leading{wake: sleeping.wake}
	informers, err := newInformers(ctx, mgr.GetCache())
	if err != nil {
		return err
	}
	live, err := client.NewWithWatch(cfg, client.Options{Scheme: mgr.GetScheme(), HTTPClient: mgr.GetHTTPClient(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("make the client of snapshots: %w", err)
	}
	tracker := provision.NewTracker()
	volumes := provision.NewVolumes(mgr.GetClient(), mgr.GetAPIReader(), tracker)
	pvs, err := provision.ViewPersistentVolumes(informers.persistentVolumes)
	if err != nil {
		return fmt.Errorf("index PersistentVolumes: %w", err)
	}
	provisioner := provision.NewProvisioner(volumes, mgr.GetAPIReader(), pvs, log)
	library, err := newLibrary(ctx, cfg, mgr, informers, provisioner, tracker, o, log)
	if err != nil {
		return fmt.Errorf("make the provision controller: %w", err)
	}
	// After the library, which hears of volumes that nobody waits for.
	if informers.tracked, err = informers.volumes.AddEventHandler(tracker); err != nil {
		return fmt.Errorf("watch LocalVolumes: %w", err)
	}
	ready := func() error {
		if !sleeping.isAwake() {
			return nil // it stands by
		}
		return informers.ready()
	}
	server, err := newHTTPServer(ctx, o.httpAddress, o.HTTPHandler(ready, metrics.Registry))
	if err != nil {
		return err
	}
	calls, err := bmetrics.NewCalls(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	recorder := mgr.GetEventRecorder("berth-provisioner")
	advisor := &provision.Advisor{Reader: mgr.GetClient(), Namespace: o.namespace, Recorder: recorder}
	if err := advisor.SetupWithManager(gatherer{mgr, leader}); err != nil {
		return fmt.Errorf("make the advisor: %w", err)
	}
	orphans := &provision.Orphans{
		Cached: mgr.GetClient(), Live: mgr.GetAPIReader(), Writer: mgr.GetClient(),
		Driven: provisioner.Driven, Recorder: recorder, Log: log,
	}
	if err := orphans.SetupWithManager(gatherer{mgr, leader}); err != nil {
		return fmt.Errorf("make the search for orphans: %w", err)
	}
	leader.parts = append(leader.parts, library)
	snapshots := &provision.Snapshots{Live: live}
	for _, runnable := range []manager.Runnable{
		leader,
		&csi.Server{
			Socket: o.csiSocket,
			Identity: &csi.Identity{
				Name: berth.DriverName, Version: command.Version(), Groups: true,
				Ready: func(context.Context) (bool, error) { return ready() == nil, nil },
			},
			// The sidecar that leads may be beside a replica that does not.
			BeforeController: sleeping.wake,
			Controller:       csi.NewController(volumes, provision.Offers{Live: mgr.GetAPIReader()}, snapshots, log),
			GroupController:  csi.NewGroupController(volumes, snapshots),
			Log:              log.With("service", "csi"),
			Observer:         calls,
		},
		server,
	} {
		if err := mgr.Add(runnable); err != nil {
			return err
		}
	}
	return mgr.Start(ctx)
}

func newManager(cfg *rest.Config, o options, log *slog.Logger) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, storagev1.AddToScheme, berth.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	grace := stopGrace
	following := rest.CopyConfig(cfg)
	detector := rewind.Follow(following)
	mgr, err := manager.New(following, manager.Options{
		Scheme:                  scheme,
		Logger:                  logr.FromSlogHandler(log.Handler()),
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        "berth-provisioner",
		LeaderElectionNamespace: o.namespace,
		// Half as many requests as by default; claims wait at most five seconds longer
		// for the next leader, and only after a crash.
		LeaseDuration: new(20 * time.Second),
		RenewDeadline: new(15 * time.Second),
		RetryPeriod:   new(4 * time.Second),
		// The next leader need not wait for the lease to run out: the process ends
		// when the manager has stopped.
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &grace,
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // newHTTPServer serves them
		HealthProbeBindAddress:        "0",
		NewCache:                      newSleepingCache,
		Cache: cache.Options{
			// A read of a type that is not listed here is a mistake, not a new informer.
			ReaderFailOnMissingInformer: true,
			DefaultTransform:            cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&corev1.PersistentVolumeClaim{}: {Transform: provision.SlimClaims},
				&corev1.PersistentVolume{}:      {Transform: provision.SlimPersistentVolumes},
				&storagev1.CSIStorageCapacity{}: {Namespaces: map[string]cache.Config{o.namespace: {}}},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mgr, mgr.Add(detector)
}

func newLibrary(ctx context.Context, cfg *rest.Config, mgr manager.Manager, informers *informers, provisioner *provision.Provisioner, tracker *provision.Tracker, o options, log *slog.Logger) (*provision.Library, error) {
	protobuf := rest.CopyConfig(cfg)
	protobuf.ContentType = runtime.ContentTypeProtobuf
	clientset, err := kubernetes.NewForConfigAndClient(protobuf, mgr.GetHTTPClient())
	if err != nil {
		return nil, err
	}
	return provision.NewLibrary(ctx, provision.LibraryOptions{
		Client:            clientset,
		Claims:            informers.claims,
		PersistentVolumes: informers.persistentVolumes,
		Classes:           informers.classes,
		Provisioner:       provisioner,
		Tracker:           tracker,
		Workers:           o.workers,
		Timeout:           o.provisionTimeout,
		Registerer:        metrics.Registry,
		Log:               log,
	})
}

// informers are those that the parts share.
type informers struct {
	claims, persistentVolumes, classes, volumes toolscache.SharedIndexInformer
	// tracked says when the tracker has heard of every LocalVolume.
	tracked toolscache.ResourceEventHandlerRegistration
}

// newInformers takes them from the manager's cache, not running yet. The library
// wants client-go's interface, which the cache's informers have; they are asked
// for it so that there is one informer per type.
func newInformers(ctx context.Context, from cache.Cache) (*informers, error) {
	var i informers
	for _, want := range []struct {
		obj client.Object
		to  *toolscache.SharedIndexInformer
	}{
		{&corev1.PersistentVolumeClaim{}, &i.claims},
		{&corev1.PersistentVolume{}, &i.persistentVolumes},
		{&storagev1.StorageClass{}, &i.classes},
		{&berth.LocalVolume{}, &i.volumes},
	} {
		informer, err := from.GetInformer(ctx, want.obj)
		if err != nil {
			return nil, fmt.Errorf("informer of %T: %w", want.obj, err)
		}
		shared, ok := informer.(toolscache.SharedIndexInformer)
		if !ok {
			return nil, fmt.Errorf("informer of %T is a %T, not a SharedIndexInformer", want.obj, informer)
		}
		*want.to = shared
	}
	return &i, nil
}

// ready says whether everything was seen once.
func (i *informers) ready() error {
	for _, informer := range []toolscache.SharedIndexInformer{i.claims, i.persistentVolumes, i.classes, i.volumes} {
		if !informer.HasSynced() {
			return errors.New("the informers have not synced yet")
		}
	}
	if !i.tracked.HasSynced() {
		return errors.New("the LocalVolumes are not all known yet")
	}
	return nil
}
