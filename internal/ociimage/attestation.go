// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ociimage

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Attestation says something about an image and is shipped with it.
type Attestation struct {
	// PredicateType is the URI of what is said, as "https://spdx.dev/Document".
	PredicateType string
	// Predicate is what is said, in JSON.
	Predicate []byte
}

// The form in which container engines and registries know attestations, the one that
// BuildKit has given them (docs/attestations/attestation-storage.md there): the image and a
// manifest beside it, in one index. Its layer is a statement of in-toto, and its platform
// is none, so that whoever runs the image passes it over.
const (
	statementType   = "https://in-toto.io/Statement/v0.1"
	statementMedia  = types.MediaType("application/vnd.in-toto+json")
	predicateType   = "in-toto.io/predicate-type"
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
)

type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// attestationManifest returns the manifest that goes beside the image.
func attestationManifest(tag name.Tag, digest v1.Hash, attestations []Attestation) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: "unknown", OS: "unknown", Created: v1.Time{Time: time.Unix(0, 0).UTC()}, RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for _, a := range attestations {
		content, err := json.Marshal(statement{
			Type: statementType, PredicateType: a.PredicateType, Predicate: a.Predicate,
			Subject: []subject{{tag.Name(), map[string]string{digest.Algorithm: digest.Hex}}},
		})
		if err != nil {
			return nil, fmt.Errorf("write the attestation %s: %w", a.PredicateType, err)
		}
		image, err = mutate.Append(image, mutate.Addendum{
			Layer: static.NewLayer(content, statementMedia), MediaType: statementMedia,
			Annotations: map[string]string{predicateType: a.PredicateType}, History: v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}},
		})
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// attest returns an index of the image and of what is said about it, and the manifest
// with the latter.
func attest(tag name.Tag, image v1.Image, attestations []Attestation) (v1.ImageIndex, v1.Image, error) {
	digest, err := image.Digest()
	if err != nil {
		return nil, nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	beside, err := attestationManifest(tag, digest, attestations)
	if err != nil {
		return nil, nil, err
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: config.OS, Architecture: config.Architecture}}},
		mutate.IndexAddendum{Add: beside, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{referenceType: "attestation-manifest", referenceDigest: digest.String()},
		}}), beside, nil
}

// Contents returns the regular files of an image by their absolute paths.
func Contents(image v1.Image) (map[string][]byte, error) {
	layers, err := image.Layers()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, layer := range layers {
		reader, err := layer.Uncompressed()
		if err != nil {
			return nil, err
		}
		if err := errors.Join(contentsOf(reader, files), reader.Close()); err != nil {
			return nil, fmt.Errorf("read the layer of an image: %w", err)
		}
	}
	return files, nil
}

func contentsOf(layer io.Reader, files map[string][]byte) error {
	for reader := tar.NewReader(layer); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if files["/"+header.Name], err = io.ReadAll(reader); err != nil {
			return err
		}
	}
}
