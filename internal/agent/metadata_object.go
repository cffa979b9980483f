// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// mostObjectBytes of a ConfigMap's data leave room for the rest of it below the API
	// server's limit of 1 MiB (corev1.MaxSecretSize counts alike).
	mostObjectBytes = 1_000_000
	// mostWithDumpBytes is how large the data may become by a dump, which is written anew
	// each hour.
	mostWithDumpBytes = 512 << 10

	keyGroup = "volumeGroup"
	keyThin  = "thinPool"
	keyAbout = "about"
	about    = "Metadata of one volume group of LVM, and the mappings of its thin pool, both compressed by gzip, for when its disks or its node are lost or damaged. How to use them: docs/guides/restore-lvm-metadata.md. Berth deletes this when the Pool was deleted and its volume group removed, and never because a Node or Pool has gone."

	componentLabel    = "app.kubernetes.io/component"
	componentMetadata = "lvm-metadata"

	atAPI = "here"
)

// metadataObjectName begins with the node's name, by which the admission policy
// berth-agent-metadata knows whose it is, and ends with what tells a volume group from the
// one that a pool of the same name had before: that one's copies stay.
func metadataObjectName(node, poolSet, groupUUID string) string {
	sum := sha256.Sum256([]byte(groupUUID))
	return v1alpha1.MetadataConfigMapPrefix + node + "." + poolSet + "." + hex.EncodeToString(sum[:5])
}

func (k *MetadataKeeper) deleteObject(ctx context.Context, poolSet, groupUUID string) error {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: metadataObjectName(k.NodeName, poolSet, groupUUID)}}
	if err := client.IgnoreNotFound(k.Client.Delete(ctx, object)); err != nil {
		return fmt.Errorf("delete ConfigMap %s: %w", object.Name, err)
	}
	return nil
}

// writeObject makes the ConfigMap say what the node has, and writes only what it does not
// have yet. size is that of its data; notes say what is on the node only.
func (w *metadataWorker) writeObject(ctx context.Context) (size int64, notes string, err error) {
	annotations, data, notes, err := w.content()
	if err != nil || len(annotations) == 0 {
		return 0, "", err
	}
	for _, d := range data {
		size += int64(len(d))
	}
	k := w.keeper
	name := metadataObjectName(k.NodeName, w.poolSet, w.groupUUID)
	labels := map[string]string{componentLabel: componentMetadata}
	for key, value := range map[string]string{v1alpha1.LabelNode: k.NodeName, v1alpha1.LabelPool: w.poolSet} {
		if len(validation.IsValidLabelValue(value)) == 0 {
			labels[key] = value
		}
	}
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	err = k.Live.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: name}, there)
	switch {
	case apierrors.IsNotFound(err):
		object := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: name, Labels: labels, Annotations: annotations},
			Data:       map[string]string{keyAbout: about}, BinaryData: data,
		}
		if err := k.Client.Create(ctx, object); err != nil {
			return 0, "", fmt.Errorf("create ConfigMap %s: %w", name, err)
		}
		return size, notes, nil
	case err != nil:
		return 0, "", fmt.Errorf("read ConfigMap %s: %w", name, err)
	case contains(there.Annotations, annotations) && contains(there.Labels, labels):
		return size, notes, nil
	}
	// A key that is not written again has what its annotations say.
	changes := map[string]any{}
	for key, marks := range map[string][]string{
		keyGroup: {v1alpha1.AnnotationGeneration, v1alpha1.AnnotationCopiedAt, v1alpha1.AnnotationGroupKept},
		keyThin:  {v1alpha1.AnnotationThinGeneration, v1alpha1.AnnotationDumpedAt, v1alpha1.AnnotationThinKept},
	} {
		same := true
		for _, mark := range marks {
			same = same && there.Annotations[mark] == annotations[mark]
		}
		if same {
			continue
		}
		changes[key] = nil
		if d, ok := data[key]; ok {
			changes[key] = d
		}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": annotations, "labels": labels}, "data": map[string]string{keyAbout: about}, "binaryData": changes,
	})
	if err != nil {
		return 0, "", fmt.Errorf("write ConfigMap %s: %w", name, err)
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: name}}
	if err := k.Client.Patch(ctx, object, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return 0, "", fmt.Errorf("write ConfigMap %s: %w", name, err)
	}
	return size, notes, nil
}

func contains(all, some map[string]string) bool {
	for key, value := range some {
		if all[key] != value {
			return false
		}
	}
	return true
}

// content is what the ConfigMap is to say, by the copies on the node; nothing while there
// are none.
func (w *metadataWorker) content() (annotations map[string]string, data map[string][]byte, notes string, err error) {
	data = map[string][]byte{}
	groups, err := w.files.latest(copyOfGroup)
	if err != nil || len(groups) == 0 {
		return nil, nil, "", err
	}
	group := groups[0]
	annotations = map[string]string{
		v1alpha1.AnnotationVGUUID:     w.groupUUID,
		v1alpha1.AnnotationGeneration: strconv.FormatUint(group.generation, 10),
		v1alpha1.AnnotationCopiedAt:   group.at.UTC().Format(time.RFC3339),
		v1alpha1.AnnotationGroupKept:  atAPI,
	}
	size, err := w.files.size(group)
	if err != nil {
		return nil, nil, "", err
	}
	if size > mostObjectBytes {
		where := path.Join(w.hostDirectory(), group.name)
		annotations[v1alpha1.AnnotationGroupKept] = where
		notes = fmt.Sprintf("the metadata of the volume group have %d bytes, compressed, and a ConfigMap has room for %d: they are on the node only, in %s; copy that to where a lost node does not take it along", size, mostObjectBytes, where)
		size = 0
	} else if data[keyGroup], err = w.files.read(group); err != nil {
		return nil, nil, "", err
	}
	dumps, err := w.files.latest(copyOfThin)
	if err != nil || len(dumps) == 0 {
		return annotations, data, notes, err
	}
	dump := dumps[0]
	maps.Copy(annotations, map[string]string{
		v1alpha1.AnnotationThinGeneration:    strconv.FormatUint(dump.generation, 10),
		v1alpha1.AnnotationThinTransactionID: strconv.FormatUint(dump.transactionID, 10),
		v1alpha1.AnnotationDumpedAt:          dump.at.UTC().Format(time.RFC3339),
		v1alpha1.AnnotationThinKept:          atAPI,
	})
	dumpSize, err := w.files.size(dump)
	if err != nil {
		return nil, nil, "", err
	}
	if size+dumpSize > mostWithDumpBytes {
		annotations[v1alpha1.AnnotationThinKept] = path.Join(w.hostDirectory(), dump.name)
		return annotations, data, notes, nil
	}
	data[keyThin], err = w.files.read(dump)
	return annotations, data, notes, err
}
