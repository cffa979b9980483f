// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"net/http"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/rewind"
)

const (
	// StopGrace is how long what is under way may take after the context has ended.
	StopGrace = 10 * time.Second
	// patience is how long the controllers wait for the API server when they start.
	// Ending the process would not bring it back, and would interrupt kubelet's calls,
	// which are served meanwhile.
	patience = 365 * 24 * time.Hour
)

// newManager returns a manager whose cache holds the objects of this node and what is
// common to all nodes and small. It asks the API server nothing. It ends with
// rewind.ErrWentBack when what the cache holds is of a future that was undone.
func newManager(o Options) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, storagev1.AddToScheme, berth.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	onThisNode := cache.ByObject{Field: fields.OneTermEqualSelector("spec.nodeName", o.NodeName)}
	grace := StopGrace
	following := rest.CopyConfig(o.Config)
	detector := rewind.Follow(following)
	mgr, err := manager.New(following, manager.Options{
		Scheme: scheme,
		Logger: logr.FromSlogHandler(o.Log.Handler()),
		// The types are few and known: no discovery at start, and none while the API
		// server is away.
		MapperProvider:          func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return NewMapper(), nil },
		GracefulShutdownTimeout: &grace,
		Metrics:                 metricsserver.Options{BindAddress: "0"}, // whoever has the Registerer serves them
		HealthProbeBindAddress:  "0",
		Controller:              config.Controller{CacheSyncTimeout: patience, SkipNameValidation: &o.SharedProcess},
		Cache: cache.Options{
			// A read of a type that is not watched is a mistake, not a new informer of the
			// whole cluster.
			ReaderFailOnMissingInformer: true,
			DefaultTransform:            cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&berth.LocalVolume{}:     onThisNode,
				&berth.LocalSnapshot{}:   onThisNode,
				&berth.BlockDevice{}:     onThisNode,
				&berth.Pool{}:            onThisNode,
				discovery.NodeMetadata(): {Field: fields.OneTermEqualSelector("metadata.name", o.NodeName)},
				&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{
					o.Namespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", berth.ConfigMapName)},
				}},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mgr, mgr.Add(detector)
}

// NewMapper knows every kind that an agent may read or write, so that an agent asks no API server which kinds there are:
// whether a cluster has a kind is what the API server answers to a request for its objects.
func NewMapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"BlockDevice", "LocalVolume", "LocalSnapshot", "Pool", "PoolSet"} {
		m.Add(berth.GroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(corev1.SchemeGroupVersion.WithKind("PersistentVolume"), meta.RESTScopeRoot)
	m.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	m.Add(agent.SnapshotContents.GroupVersion().WithKind("VolumeSnapshotContent"), meta.RESTScopeRoot)
	m.Add(storagev1.SchemeGroupVersion.WithKind("StorageClass"), meta.RESTScopeRoot)
	m.AddSpecific(storagev1.SchemeGroupVersion.WithKind("CSIStorageCapacity"),
		storagev1.SchemeGroupVersion.WithResource("csistoragecapacities"),
		storagev1.SchemeGroupVersion.WithResource("csistoragecapacity"), meta.RESTScopeNamespace)
	return m
}
