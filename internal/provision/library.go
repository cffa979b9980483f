// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// lastRetry is the longest time between two tries.
const lastRetry = 5 * time.Minute

// LibraryOptions are what the ProvisionController of sig-storage-lib is made of.
type LibraryOptions struct {
	// Client of the library's own requests.
	Client kubernetes.Interface
	// Claims, PersistentVolumes and Classes are shared with the process's cache.
	Claims, PersistentVolumes, Classes toolscache.SharedIndexInformer
	Provisioner                        *Provisioner
	// Tracker nudges the library when something is done that nobody waits for.
	Tracker *Tracker
	// Workers that provision, and as many that delete.
	Workers int
	// Timeout of one Provision and of one Delete.
	Timeout time.Duration
	// Registerer takes the library's metrics.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Library runs the ProvisionController. It must run in one process of the cluster
// at a time, and NeedLeaderElection says so to the manager.
type Library struct {
	controller *controller.ProvisionController
	log        *slog.Logger
	workers    sync.WaitGroup
}

// NewLibrary makes the controller. Call it before the informers run. The context
// ends the library's recording of events and must outlive Start.
func NewLibrary(ctx context.Context, o LibraryOptions) (*Library, error) {
	series := metrics.New("controller")
	for _, collector := range []prometheus.Collector{
		series.PersistentVolumeClaimProvisionTotal, series.PersistentVolumeClaimProvisionFailedTotal, series.PersistentVolumeClaimProvisionDurationSeconds,
		series.PersistentVolumeDeleteTotal, series.PersistentVolumeDeleteFailedTotal, series.PersistentVolumeDeleteDurationSeconds,
	} {
		if err := o.Registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	claims := &claimInformer{nudgedInformer: nudgedInformer{SharedIndexInformer: o.Claims}}
	pvs := &nudgedInformer{SharedIndexInformer: o.PersistentVolumes}
	l := &Library{log: o.Log}
	l.controller = controller.NewProvisionController(l.contextWithLog(ctx), o.Client, berth.DriverName, o.Provisioner,
		// The library's own election ends the process by os.Exit and never gives the
		// lease back; the manager's does neither.
		controller.LeaderElection(false),
		controller.ClaimsInformer(claims),
		controller.VolumesInformer(pvs),
		controller.ClassesInformer(o.Classes),
		controller.Threadiness(o.Workers),
		controller.ProvisionTimeout(o.Timeout),
		controller.DeletionTimeout(o.Timeout),
		// The default's first retry waits 15 seconds.
		controller.RateLimiter(newRateLimiter()),
		// Without this one, a PersistentVolume that cannot be saved five times has its
		// volume deleted.
		controller.CreateProvisionedPVLimiter(workqueue.NewTypedItemExponentialFailureRateLimiter[string](FirstRetry, lastRetry)),
		// At a threshold a volume that is made in the background is forgotten.
		controller.FailedProvisionThreshold(0),
		controller.FailedDeleteThreshold(0),
		controller.AddFinalizer(true),
		controller.MetricsInstance(series),
	)
	l.controller.ControllerWaitGroup(&l.workers)
	o.Tracker.OnUnattended(func(name string, claim *berth.ClaimReference, gone bool) {
		if claim != nil {
			// The library looks at the UID alone, so this serves claims that are
			// deleted but still being provisioned as well.
			claims.nudge(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}})
		}
		if gone {
			pvs.nudge(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	})
	return l, nil
}

func newRateLimiter() workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedMaxOfRateLimiter(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](FirstRetry, lastRetry),
		&workqueue.TypedBucketRateLimiter[string]{Limiter: rate.NewLimiter(rate.Limit(50), 500)},
	)
}

// NeedLeaderElection says that one process of the cluster provisions at a time.
func (l *Library) NeedLeaderElection() bool { return true }

// Start runs the controller until the context ends and its workers have stopped.
func (l *Library) Start(ctx context.Context) error {
	l.controller.Run(l.contextWithLog(ctx))
	l.workers.Wait()
	return nil
}

func (l *Library) contextWithLog(ctx context.Context) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(l.log.Handler()))
}

// nudgedInformer lets us call the library's handler ourselves. Its queues are its
// own, and without this a claim whose volume was finished while nobody waited
// would be looked at only after its back-off, which may be minutes.
type nudgedInformer struct {
	toolscache.SharedIndexInformer

	mu       sync.Mutex
	handlers []toolscache.ResourceEventHandler
}

// AddEventHandlerWithResyncPeriod is how the library subscribes.
func (n *nudgedInformer) AddEventHandlerWithResyncPeriod(handler toolscache.ResourceEventHandler, resync time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	n.mu.Lock()
	n.handlers = append(n.handlers, handler)
	n.mu.Unlock()
	return n.SharedIndexInformer.AddEventHandlerWithResyncPeriod(handler, resync)
}

// nudge makes the library put the object's key on its queue. The handler reads
// nothing but the metadata (enqueueClaim and enqueueVolume).
func (n *nudgedInformer) nudge(obj any) {
	n.mu.Lock()
	handlers := n.handlers
	n.mu.Unlock()
	for _, handler := range handlers {
		handler.OnUpdate(obj, obj)
	}
}
