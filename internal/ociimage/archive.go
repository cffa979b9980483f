// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ociimage

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of the image in the layout's index that carry its name:
// containerd reads the first, other tools the second (OCI Image Format
// Specification, annotations.md).
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// blob is one file of the archive.
type blob struct {
	name    string
	content []byte
}

// WriteArchive writes the image under its reference (as
// "ghcr.io/berth-dev/berth:dev") to one tar archive. `docker load` and
// `kind load image-archive` take it as a docker-archive, `ctr image import`,
// `podman load` and skopeo as an OCI layout; the blobs are shared. Where there are
// attestations, the layout's one entry is an index of the image and of them.
func WriteArchive(out io.Writer, reference string, image v1.Image, attestations ...Attestation) error {
	tag, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	blobs, err := archiveBlobs(tag, reference, image, attestations)
	if err != nil {
		return fmt.Errorf("write image archive of %s: %w", reference, err)
	}
	writer := tar.NewWriter(out)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := writer.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, blob := range blobs {
		if err := writer.WriteHeader(&tar.Header{Name: blob.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(blob.content))}); err != nil {
			return err
		}
		if _, err := writer.Write(blob.content); err != nil {
			return err
		}
	}
	return writer.Close()
}

// archiveBlobs lists the archive's files.
func archiveBlobs(tag name.Tag, reference string, image v1.Image, attestations []Attestation) ([]blob, error) {
	blobs, err := manifestBlobs(image)
	if err != nil {
		return nil, err
	}
	layers, err := image.Layers()
	if err != nil {
		return nil, err
	}
	var layerPaths []string
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return nil, err
		}
		layerPaths = append(layerPaths, blobPath(digest))
	}
	configPath := blobs[0].name
	entry := mutate.IndexAddendum{
		Add:        image,
		Descriptor: v1.Descriptor{Annotations: map[string]string{containerdName: tag.Name(), ociRefName: tag.TagStr()}},
	}
	if len(attestations) > 0 {
		attested, beside, err := attest(tag, image, attestations)
		if err != nil {
			return nil, err
		}
		more, err := manifestBlobs(beside)
		if err != nil {
			return nil, err
		}
		content, err := attested.RawManifest()
		if err != nil {
			return nil, err
		}
		digest, err := attested.Digest()
		if err != nil {
			return nil, err
		}
		blobs, entry.Add = append(append(blobs, more...), blob{blobPath(digest), content}), attested
	}
	index, err := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), entry).RawManifest()
	if err != nil {
		return nil, err
	}
	docker, err := json.Marshal([]map[string]any{{"Config": configPath, "RepoTags": []string{reference}, "Layers": layerPaths}})
	if err != nil {
		return nil, err
	}
	return append(blobs,
		blob{"index.json", index},
		blob{"manifest.json", docker},
		blob{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
	), nil
}

// manifestBlobs are the config, the manifest and the layers, as the manifest lists them.
func manifestBlobs(image v1.Image) ([]blob, error) {
	config, err := image.RawConfigFile()
	if err != nil {
		return nil, err
	}
	configDigest, err := image.ConfigName()
	if err != nil {
		return nil, err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return nil, err
	}
	manifestDigest, err := image.Digest()
	if err != nil {
		return nil, err
	}
	layers, err := image.Layers()
	if err != nil {
		return nil, err
	}
	blobs := []blob{{blobPath(configDigest), config}, {blobPath(manifestDigest), manifest}}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return nil, err
		}
		reader, err := layer.Compressed()
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(reader)
		if err := errors.Join(err, reader.Close()); err != nil {
			return nil, err
		}
		blobs = append(blobs, blob{blobPath(digest), content})
	}
	return blobs, nil
}

func blobPath(digest v1.Hash) string { return "blobs/" + digest.Algorithm + "/" + digest.Hex }

// WriteFile builds an image and writes its archive to a file, which appears
// only when it is whole.
func WriteFile(path, reference string, spec Spec) error {
	image, err := Build(spec)
	if err != nil {
		return fmt.Errorf("build image %s: %w", reference, err)
	}
	return WriteImage(path, reference, image)
}

// WriteImage writes the archive of an image, with what is said about it, to a file, which
// appears only when it is whole.
func WriteImage(path, reference string, image v1.Image, attestations ...Attestation) error {
	file, err := os.Create(path + ".partial")
	if err != nil {
		return err
	}
	if err := errors.Join(WriteArchive(file, reference, image, attestations...), file.Close()); err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return os.Rename(file.Name(), path)
}
