// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sbom writes down what a container image is made of, as a document of SPDX 2.3
// in JSON: each of its files, and each Go module that a program among them was built from,
// as the program itself says (runtime/debug.BuildInfo). It reads the image and nothing
// else, so what is not in the document is not in the image, and the same image gives the
// same bytes.
package sbom

import (
	"bytes"
	"cmp"
	"crypto/sha1" //nolint:gosec // G505: SPDX 2.3 asks for it, beside SHA256
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// PredicateType is what an in-toto statement with such a document is called.
const PredicateType = "https://spdx.dev/Document"

// File is one file of an image.
type File struct {
	// Path in the image, absolute.
	Path    string
	Content []byte
}

// document is the part of SPDX 2.3 that is needed here.
type document struct {
	SPDXVersion   string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	CreationInfo  creationInfo   `json:"creationInfo"`
	Packages      []pkg          `json:"packages"`
	Files         []file         `json:"files"`
	Relationships []relationship `json:"relationships"`
}

type creationInfo struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type pkg struct {
	ID               string            `json:"SPDXID"`
	Name             string            `json:"name"`
	Version          string            `json:"versionInfo,omitempty"`
	DownloadLocation string            `json:"downloadLocation"`
	FilesAnalyzed    bool              `json:"filesAnalyzed"`
	VerificationCode *verificationCode `json:"packageVerificationCode,omitempty"`
	SourceInfo       string            `json:"sourceInfo,omitempty"`
	LicenseConcluded string            `json:"licenseConcluded"`
	LicenseDeclared  string            `json:"licenseDeclared"`
	Copyright        string            `json:"copyrightText"`
	Purpose          string            `json:"primaryPackagePurpose"`
	ExternalRefs     []externalRef     `json:"externalRefs,omitempty"`
}

type verificationCode struct {
	Value string `json:"packageVerificationCodeValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type file struct {
	ID               string     `json:"SPDXID"`
	Name             string     `json:"fileName"`
	Types            []string   `json:"fileTypes"`
	Checksums        []checksum `json:"checksums"`
	LicenseConcluded string     `json:"licenseConcluded"`
	Copyright        string     `json:"copyrightText"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const (
	documentID = "SPDXRef-DOCUMENT"
	imageID    = "SPDXRef-Image"
	unknown    = "NOASSERTION"
	license    = "Apache-2.0"
)

// Image describes the image as which the files are shipped: its name without a tag, its
// version, and all its files. ownModule is the module that is of the image's version,
// whatever the programs' build says: they are built from a work tree.
func Image(name, version, ownModule string, files []File) ([]byte, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	doc := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", ID: documentID, Name: name + "-" + version,
		// When it was made depends on nothing that is in it.
		CreationInfo:  creationInfo{Created: time.Unix(0, 0).UTC().Format(time.RFC3339), Creators: []string{"Organization: The Berth Authors", "Tool: berth-image"}},
		Relationships: []relationship{{documentID, "DESCRIBES", imageID}},
	}
	modules := map[string]pkg{}
	var sums []string
	for _, f := range files {
		described, sum := describe(f)
		doc.Files, sums = append(doc.Files, described), append(sums, sum)
		doc.Relationships = append(doc.Relationships, relationship{imageID, "CONTAINS", described.ID})
		// What is no program of Go has no such information; that it has none is no error.
		info, err := buildinfo.Read(bytes.NewReader(f.Content))
		if err != nil {
			if bytes.HasPrefix(f.Content, []byte("\x7fELF")) {
				return nil, fmt.Errorf("describe %s: a program of unknown making: %w", f.Path, err)
			}
			continue
		}
		for _, m := range modulesOf(info, ownModule, version) {
			modules[m.ID] = m
			doc.Relationships = append(doc.Relationships, relationship{described.ID, "STATIC_LINK", m.ID})
		}
	}
	slices.Sort(sums)
	all := sha1.Sum([]byte(strings.Join(sums, ""))) //nolint:gosec // G401: as SPDX 2.3 defines it (7.9)
	doc.Packages = []pkg{{
		ID: imageID, Name: name, Version: version, DownloadLocation: unknown, FilesAnalyzed: true,
		VerificationCode: &verificationCode{hex.EncodeToString(all[:])},
		LicenseConcluded: unknown, LicenseDeclared: license, Copyright: unknown, Purpose: "CONTAINER",
	}}
	for _, m := range modules {
		doc.Packages = append(doc.Packages, m)
	}
	slices.SortFunc(doc.Packages[1:], func(a, b pkg) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version))
	})
	slices.SortStableFunc(doc.Relationships[1:], func(a, b relationship) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.Type, b.Type), strings.Compare(a.To, b.To))
	})
	// A document's namespace is its own; another image has another.
	doc.Namespace = "https://berth.dev/spdx/" + url.PathEscape(doc.Name) + "-" + hex.EncodeToString(all[:])
	content, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		return nil, fmt.Errorf("describe image %s: %w", name, err)
	}
	return append(content, '\n'), nil
}

// describe returns the entry of a file and its SHA1.
func describe(f File) (file, string) {
	old, sum := sha1.Sum(f.Content), sha256.Sum256(f.Content) //nolint:gosec // G401: SPDX 2.3 asks for it (8.4)
	kind := "OTHER"
	if bytes.HasPrefix(f.Content, []byte("\x7fELF")) {
		kind = "BINARY"
	}
	return file{
		ID: id("File", f.Path), Name: "." + f.Path, Types: []string{kind},
		Checksums:        []checksum{{"SHA1", hex.EncodeToString(old[:])}, {"SHA256", hex.EncodeToString(sum[:])}},
		LicenseConcluded: unknown, Copyright: unknown,
	}, hex.EncodeToString(old[:])
}

// modulesOf are the modules that a program was built from, with Go itself as the module
// "stdlib", which is what vulnerability databases call it.
func modulesOf(info *debug.BuildInfo, ownModule, version string) []pkg {
	packages := []pkg{module("stdlib", strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go"), "")}
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Replace != nil {
			m = m.Replace
		}
		if m.Path == ownModule {
			packages = append(packages, module(m.Path, version, ""))
			continue
		}
		packages = append(packages, module(m.Path, m.Version, m.Sum))
	}
	return packages
}

func module(path, version, sum string) pkg {
	p := pkg{
		ID: id("Module", path+"@"+version), Name: path, Version: version, DownloadLocation: unknown,
		LicenseConcluded: unknown, LicenseDeclared: unknown, Copyright: unknown, Purpose: "LIBRARY",
		ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(path) + "@" + url.QueryEscape(version)}},
	}
	if sum != "" {
		p.SourceInfo = "go.sum " + sum
	}
	return p
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// id is the identifier of an element: readable, and unique by the hash of its name.
func id(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return "SPDXRef-" + kind + "-" + strings.Trim(notInID.ReplaceAllString(name, "-"), "-") + "-" + hex.EncodeToString(sum[:4])
}
