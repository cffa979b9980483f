// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ociimage builds container images of one layer without a container
// engine, and writes each as a single tar archive that every tool takes: an
// OCI image layout (OCI Image Format Specification, image-layout.md) that is a
// docker-archive at the same time. The same input gives the same bytes.
package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one file or symbolic link of an image. Exactly one of Source,
// Content and Link is set, or Mode has fs.ModeDir.
type File struct {
	// Path is where it is in the image, absolute. Its parent folders are made.
	Path string
	// Source is the file on this machine that is copied.
	Source string
	// Content is the file's content.
	Content []byte
	// Link is what a symbolic link points to.
	Link string
	// Mode is the permissions, and the type for a folder. Zero means 0755 for
	// folders and for a Source that can be executed, and 0644 for other files.
	Mode fs.FileMode
}

// Spec describes an image.
type Spec struct {
	// Architecture is Go's name of it. Empty means amd64.
	Architecture string
	Files        []File
	Entrypoint   []string
	// Env are NAME=VALUE pairs.
	Env    []string
	Labels map[string]string
	// User is the user and group that the process runs as, as "65532:65532".
	// Empty means root.
	User string
	// Created is the image's date. Zero means the epoch, so that the image
	// depends on nothing but its content.
	Created time.Time
	// Compress compresses the layer with gzip. An image for a registry should
	// be compressed; one that is imported from its archive is faster without.
	Compress bool
}

// Build makes the image.
func Build(spec Spec) (v1.Image, error) {
	content, err := layerTar(spec.Files)
	if err != nil {
		return nil, err
	}
	layer, mediaType, err := newLayer(content, spec.Compress)
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: spec.Created.UTC()}
	if spec.Created.IsZero() {
		created = v1.Time{Time: time.Unix(0, 0).UTC()}
	}
	architecture := spec.Architecture
	if architecture == "" {
		architecture = "amd64"
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: architecture, OS: "linux", Created: created, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: spec.Entrypoint, Env: spec.Env, Labels: spec.Labels, User: spec.User},
	})
	if err != nil {
		return nil, fmt.Errorf("configure image: %w", err)
	}
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: mediaType, History: v1.History{Created: created, CreatedBy: "berth"}})
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	return image, nil
}

func newLayer(content []byte, compress bool) (v1.Layer, types.MediaType, error) {
	if !compress {
		return static.NewLayer(content, types.OCIUncompressedLayer), types.OCIUncompressedLayer, nil
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, "", fmt.Errorf("compress layer: %w", err)
	}
	return layer, types.OCILayer, nil
}

// layerTar writes the files as a tar archive: sorted, owned by root, without
// dates, each parent folder before what is in it.
func layerTar(files []File) ([]byte, error) {
	entries := map[string]File{}
	for _, file := range files {
		name := path.Clean(file.Path)
		if !path.IsAbs(file.Path) || name == "/" {
			return nil, fmt.Errorf("add %q: not the absolute path of a file", file.Path)
		}
		if _, twice := entries[name]; twice {
			return nil, fmt.Errorf("add %s: it is there already", name)
		}
		entries[name] = file
	}
	for _, name := range sortedNames(entries) {
		for parent := path.Dir(name); parent != "/"; parent = path.Dir(parent) {
			above, there := entries[parent]
			if !there {
				entries[parent] = File{Path: parent, Mode: fs.ModeDir | 0o755}
			} else if !above.Mode.IsDir() {
				return nil, fmt.Errorf("add %s: %s is no folder", name, parent)
			}
		}
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, name := range sortedNames(entries) {
		if err := addEntry(writer, name, entries[name]); err != nil {
			return nil, fmt.Errorf("add %s: %w", name, err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

func sortedNames(entries map[string]File) []string {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func addEntry(writer *tar.Writer, name string, file File) error {
	header := &tar.Header{Name: strings.TrimPrefix(name, "/"), Format: tar.FormatPAX, Mode: tarMode(file.Mode)}
	switch {
	case file.Mode.IsDir():
		header.Typeflag = tar.TypeDir
		header.Name += "/"
		if file.Mode.Perm() == 0 {
			header.Mode = 0o755
		}
		return writer.WriteHeader(header)
	case file.Link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, file.Link, 0o777
		return writer.WriteHeader(header)
	}
	content := file.Content
	if file.Source != "" {
		if content != nil {
			return errors.New("both a source and content")
		}
		info, err := os.Stat(file.Source)
		if err != nil {
			return err
		}
		if content, err = os.ReadFile(file.Source); err != nil {
			return err
		}
		if file.Mode == 0 && info.Mode()&0o111 != 0 {
			header.Mode = 0o755
		}
	}
	if header.Mode == 0 {
		header.Mode = 0o644
	}
	header.Typeflag, header.Size = tar.TypeReg, int64(len(content))
	if err := writer.WriteHeader(header); err != nil {
		return err
	}
	_, err := writer.Write(content)
	return err
}

// tarMode turns Go's mode bits into the ones of tar.
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
