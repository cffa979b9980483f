// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/berth-dev/berth/internal/ociimage"
)

// The document is about what is in the image, whatever that is made from.
func TestEveryFileOfTheImageIsDescribed(t *testing.T) {
	t.Parallel()
	image, err := ociimage.Build(ociimage.Spec{Files: []ociimage.File{
		{Path: "/program", Source: os.Args[0]}, {Path: "/LICENSE", Content: []byte("text")}, {Path: "/etc/empty", Content: []byte{}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	content, err := describe(image, "example.com/berth:dev", "")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Name  string `json:"name"`
		Files []struct {
			FileName string `json:"fileName"`
		} `json:"files"`
		Packages []struct {
			Name        string `json:"name"`
			VersionInfo string `json:"versionInfo"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range document.Files {
		names = append(names, f.FileName)
	}
	if want := []string{"./LICENSE", "./etc/empty", "./program"}; !slices.Equal(names, want) || document.Name != "example.com/berth-dev" {
		t.Errorf("%s has %v, want %v", document.Name, names, want)
	}
	if first := document.Packages[0]; first.Name != "example.com/berth" || first.VersionInfo != "dev" || len(document.Packages) < 2 {
		t.Errorf("the image is %+v among %d packages", first, len(document.Packages))
	}
}
