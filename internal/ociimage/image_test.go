// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ociimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const reference = "ghcr.io/berth-dev/berth:dev"

func exampleSpec(t *testing.T) Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Files: []File{
			{Path: "/usr/bin/program", Source: program},
			{Path: "/bin/sh", Link: "../usr/bin/program"},
			{Path: "/etc/motd", Content: []byte("hello\n")},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		},
		Entrypoint: []string{"/usr/bin/program"}, Env: []string{"A=1"}, Labels: map[string]string{"k": "v"}, User: "65532:65532",
	}
}

func archive(t *testing.T, spec Spec) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := WriteFile(path, reference, spec); err != nil {
		t.Fatal(err)
	}
	return path
}

// untar unpacks an archive into a folder.
func untar(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := t.TempDir()
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, header.Name)
		if header.Typeflag == tar.TypeDir {
			err = os.Mkdir(target, 0o755)
		} else {
			var content []byte
			content, err = io.ReadAll(reader)
			err = errors.Join(err, os.WriteFile(target, content, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestArchiveIsADockerArchiveAndAnOCILayout(t *testing.T) {
	t.Parallel()
	for variant, compress := range map[string]bool{"plain": false, "compressed": true} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			spec := exampleSpec(t)
			spec.Compress = compress
			path := archive(t, spec)

			tag, err := name.NewTag(reference)
			if err != nil {
				t.Fatal(err)
			}
			docker, err := tarball.ImageFromPath(path, &tag)
			if err != nil {
				t.Fatalf("as a docker-archive: %v", err)
			}
			checkImage(t, docker)

			dir := untar(t, path)
			checkBlobs(t, dir, 3) // a config, a manifest and a layer
			index, err := layout.ImageIndexFromPath(dir)
			if err != nil {
				t.Fatalf("as an OCI layout: %v", err)
			}
			manifest, err := index.IndexManifest()
			if err != nil || len(manifest.Manifests) != 1 {
				t.Fatalf("index = %v, %v", manifest, err)
			}
			annotations := manifest.Manifests[0].Annotations
			if annotations["io.containerd.image.name"] != reference || annotations["org.opencontainers.image.ref.name"] != "dev" {
				t.Errorf("annotations of the image: %v", annotations)
			}
			oci, err := index.Image(manifest.Manifests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			if digest, err := oci.Digest(); err != nil || digest != manifest.Manifests[0].Digest {
				t.Errorf("digest of the image = %v, %v", digest, err)
			}
			if compress { // the library reads no other layers from a layout
				checkImage(t, oci)
			}
		})
	}
}

// checkBlobs checks that each blob of a layout is what its name says.
func checkBlobs(t *testing.T, dir string, want int) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil || len(blobs) != want {
		t.Fatalf("blobs = %v, %v, want %d", blobs, err, want)
	}
	for _, blob := range blobs {
		content, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(content)); sum != filepath.Base(blob) {
			t.Errorf("the digest of blob %s is %s", filepath.Base(blob), sum)
		}
	}
}

func checkImage(t *testing.T, image v1.Image) {
	t.Helper()
	if err := validate.Image(image); err != nil {
		t.Error(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := config.Config; !slices.Equal(c.Entrypoint, []string{"/usr/bin/program"}) || !slices.Equal(c.Env, []string{"A=1"}) || c.Labels["k"] != "v" || c.User != "65532:65532" {
		t.Errorf("config = %+v", c)
	}
	if config.OS != "linux" || config.Architecture != "amd64" {
		t.Errorf("platform = %s/%s", config.OS, config.Architecture)
	}
	type entry struct {
		name string
		kind byte
		mode int64
		link string
	}
	want := []entry{
		{"bin/", tar.TypeDir, 0o755, ""},
		{"bin/sh", tar.TypeSymlink, 0o777, "../usr/bin/program"},
		{"etc/", tar.TypeDir, 0o755, ""},
		{"etc/motd", tar.TypeReg, 0o644, ""},
		{"tmp/", tar.TypeDir, 0o1777, ""},
		{"usr/", tar.TypeDir, 0o755, ""},
		{"usr/bin/", tar.TypeDir, 0o755, ""},
		{"usr/bin/program", tar.TypeReg, 0o755, ""},
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers = %v, %v", layers, err)
	}
	uncompressed, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer uncompressed.Close()
	var got []entry
	for reader := tar.NewReader(uncompressed); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != 0 {
			t.Errorf("%s has an owner or a date: %+v", header.Name, header)
		}
		got = append(got, entry{header.Name, header.Typeflag, header.Mode, header.Linkname})
	}
	if !slices.Equal(got, want) {
		t.Errorf("layer = %v\nwant    %v", got, want)
	}
}

// Whoever runs the image finds it as before, and whoever looks for attestations finds
// them beside it.
func TestAttestations(t *testing.T) {
	t.Parallel()
	spec := exampleSpec(t)
	spec.Compress = true // the library reads no other layers from a layout
	image, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	said := Attestation{PredicateType: "https://spdx.dev/Document", Predicate: []byte(`{"spdxVersion":"SPDX-2.3"}`)}
	if err := WriteImage(path, reference, image, said); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "image.tar")
	if err := WriteImage(again, reference, image, said); err != nil {
		t.Fatal(err)
	}
	if a, b := readFile(t, path), readFile(t, again); !bytes.Equal(a, b) {
		t.Error("the same image and attestation give other bytes")
	}

	tag, err := name.NewTag(reference)
	if err != nil {
		t.Fatal(err)
	}
	docker, err := tarball.ImageFromPath(path, &tag)
	if err != nil {
		t.Fatalf("as a docker-archive: %v", err)
	}
	checkImage(t, docker)

	dir := untar(t, path)
	checkBlobs(t, dir, 7) // of the image, of the attestation, and the index of both
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatalf("as an OCI layout: %v", err)
	}
	entries, err := top.IndexManifest()
	if err != nil || len(entries.Manifests) != 1 { // with two, tools ask which
		t.Fatalf("index = %+v, %v", entries, err)
	}
	if entry := entries.Manifests[0]; entry.Annotations["io.containerd.image.name"] != reference || entry.MediaType != "application/vnd.oci.image.index.v1+json" {
		t.Errorf("the entry of the layout is %+v", entry)
	}
	index, err := top.ImageIndex(entries.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := index.IndexManifest()
	if err != nil || len(manifests.Manifests) != 2 {
		t.Fatalf("index = %+v, %v", manifests, err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	runs, says := manifests.Manifests[0], manifests.Manifests[1]
	if runs.Digest != digest || runs.Platform.String() != "linux/amd64" {
		t.Errorf("the image is %+v", runs)
	}
	oci, err := index.Image(runs.Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, oci)
	if says.Platform.String() != "unknown/unknown" || says.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || says.Annotations["vnd.docker.reference.digest"] != digest.String() {
		t.Errorf("the attestation is %+v", says)
	}
	beside, err := index.Image(says.Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := beside.Manifest()
	if err != nil || len(manifest.Layers) != 1 || manifest.Layers[0].MediaType != "application/vnd.in-toto+json" ||
		manifest.Layers[0].Annotations["in-toto.io/predicate-type"] != said.PredicateType {
		t.Fatalf("the manifest of the attestation is %+v, %v", manifest, err)
	}
	var got statement
	if err := json.Unmarshal(readFile(t, filepath.Join(dir, "blobs", "sha256", manifest.Layers[0].Digest.Hex)), &got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Predicate, said.Predicate) || got.PredicateType != said.PredicateType || len(got.Subject) != 1 || got.Subject[0].Digest["sha256"] != digest.Hex {
		t.Errorf("the statement is %+v", got)
	}
}

func TestContents(t *testing.T) {
	t.Parallel()
	image, err := Build(exampleSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	contents, err := Contents(image)
	if err != nil {
		t.Fatal(err)
	}
	if len(contents) != 2 || string(contents["/etc/motd"]) != "hello\n" || string(contents["/usr/bin/program"]) != "#!/bin/sh\n" {
		t.Errorf("contents = %q", contents)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestArchiveIsReproducible(t *testing.T) {
	t.Parallel()
	spec := exampleSpec(t)
	first, err := os.ReadFile(archive(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(spec.Files)
	second, err := os.ReadFile(archive(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same content in another order gives other bytes")
	}
}

func TestDockerManifestNamesTheImage(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(untar(t, archive(t, exampleSpec(t))), "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest []struct{ RepoTags []string }
	if err := json.Unmarshal(content, &manifest); err != nil || len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{reference}) {
		t.Errorf("manifest = %s, %v", content, err)
	}
}

func TestWriteFileRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		reference string
		files     []File
	}{
		"a relative path":           {reference, []File{{Path: "etc/motd", Content: []byte("x")}}},
		"the root":                  {reference, []File{{Path: "/", Mode: fs.ModeDir}}},
		"the same path twice":       {reference, []File{{Path: "/a", Content: []byte("x")}, {Path: "/b/../a", Content: []byte("y")}}},
		"a file in a file":          {reference, []File{{Path: "/a", Content: []byte("x")}, {Path: "/a/b", Content: []byte("y")}}},
		"a missing source":          {reference, []File{{Path: "/a", Source: "/does/not/exist"}}},
		"a source and content":      {reference, []File{{Path: "/a", Source: os.Args[0], Content: []byte("x")}}},
		"a reference without a tag": {"ghcr.io/berth-dev/berth", []File{{Path: "/a", Content: []byte("x")}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := WriteFile(filepath.Join(dir, "image.tar"), test.reference, Spec{Files: test.files}); err == nil {
				t.Error("accepted")
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}
