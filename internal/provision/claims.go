// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
)

// claimInformer is the informer of claims as the library gets it: it can be nudged, and
// its store is never set back.
//
// When the library gives a claim back to the scheduler, it takes the annotation of the
// selected node away by the API and then writes the same into the informer's store, over
// whatever is there (rescheduleProvisioning in its controller.go). The scheduler may have
// chosen another node by then, and the store may hold that: it was lost, and the claim
// waited until something else happened to it.
type claimInformer struct {
	nudgedInformer

	mu sync.Mutex
	// givenBack are the versions of claims whose selected node is void.
	givenBack map[types.UID]string
}

// GetStore is where the library writes.
func (i *claimInformer) GetStore() toolscache.Store {
	return claimIndexer{i.SharedIndexInformer.GetIndexer(), i}
}

// GetIndexer is where the library reads.
func (i *claimInformer) GetIndexer() toolscache.Indexer {
	return claimIndexer{i.SharedIndexInformer.GetIndexer(), i}
}

type claimIndexer struct {
	toolscache.Indexer

	informer *claimInformer
}

// Update notes that the version of the claim is one that was given back. What the
// informer has stored stays, this version or a newer one.
func (x claimIndexer) Update(obj any) error {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return fmt.Errorf("a %T is no claim", obj)
	}
	x.informer.giveBack(claim)
	return nil
}

// ByIndex returns claims, without the selected node of versions that were given back.
func (x claimIndexer) ByIndex(indexName, value string) ([]any, error) {
	found, err := x.Indexer.ByIndex(indexName, value)
	for i, obj := range found {
		if claim, ok := obj.(*corev1.PersistentVolumeClaim); ok && x.informer.isGivenBack(claim) {
			free := claim.DeepCopy()
			delete(free.Annotations, annotationSelectedNode)
			found[i] = free
		}
	}
	return found, err
}

// givenBackLimit is when the versions that were given back are forgotten; by then the
// informer has long seen newer ones.
const givenBackLimit = 1024

func (i *claimInformer) giveBack(claim *corev1.PersistentVolumeClaim) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.givenBack == nil || len(i.givenBack) >= givenBackLimit {
		i.givenBack = map[types.UID]string{}
	}
	i.givenBack[claim.UID] = claim.ResourceVersion
}

func (i *claimInformer) isGivenBack(claim *corev1.PersistentVolumeClaim) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	version, marked := i.givenBack[claim.UID]
	if marked && version != claim.ResourceVersion {
		delete(i.givenBack, claim.UID)
	}
	return marked && version == claim.ResourceVersion
}
