// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sbom

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const own = "github.com/berth-dev/berth"

// files are those of an image with one program: this test.
func files(t *testing.T) []File {
	t.Helper()
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return []File{{"/usr/bin/program", program}, {"/LICENSE", []byte("text")}, {"/usr/bin-program", []byte("another name that reads alike")}}
}

func describeImage(t *testing.T, files []File) (document, []byte) {
	t.Helper()
	content, err := Image("example.com/berth", "v1.2.3", own, files)
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	return doc, content
}

func TestEveryFileAndModuleIsInIt(t *testing.T) {
	t.Parallel()
	doc, _ := describeImage(t, files(t))
	for _, f := range files(t) {
		sum := sha256.Sum256(f.Content)
		i := slices.IndexFunc(doc.Files, func(d file) bool { return d.Name == "."+f.Path })
		if i < 0 || !slices.Contains(doc.Files[i].Checksums, checksum{"SHA256", hex.EncodeToString(sum[:])}) {
			t.Fatalf("%s is not described in %+v", f.Path, doc.Files)
		}
		if !slices.Contains(doc.Relationships, relationship{imageID, "CONTAINS", doc.Files[i].ID}) {
			t.Errorf("%s is not in the image", f.Path)
		}
	}
	if len(doc.Files) != len(files(t)) {
		t.Errorf("%d files are described, there are %d", len(doc.Files), len(files(t)))
	}
	info, err := buildinfo.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{own: "v1.2.3", "stdlib": strings.TrimPrefix(info.GoVersion, "go")}
	for _, m := range info.Deps {
		want[m.Path] = m.Version
	}
	program := doc.Files[slices.IndexFunc(doc.Files, func(d file) bool { return d.Name == "./usr/bin/program" })]
	for _, p := range doc.Packages[1:] {
		version, known := want[p.Name]
		if p.Version = strings.Fields(p.Version)[0]; !known || !strings.HasPrefix(version, p.Version) {
			t.Errorf("%s %s: the program has %q", p.Name, p.Version, version)
		}
		delete(want, p.Name)
		if !slices.Contains(doc.Relationships, relationship{program.ID, "STATIC_LINK", p.ID}) {
			t.Errorf("%s is not linked to the program", p.Name)
		}
		if len(p.ExternalRefs) != 1 || !strings.HasPrefix(p.ExternalRefs[0].Locator, "pkg:golang/"+strings.ToLower(p.Name)+"@") {
			t.Errorf("%s has the references %+v", p.Name, p.ExternalRefs)
		}
	}
	if len(want) > 0 {
		t.Errorf("not described: %v", want)
	}
}

// What every reader of SPDX relies on: identifiers are of the allowed letters, each is of
// one element, and each that is spoken of is there.
func TestIdentifiers(t *testing.T) {
	t.Parallel()
	doc, _ := describeImage(t, files(t))
	ids := map[string]bool{doc.ID: true}
	add := func(id string) {
		if !regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`).MatchString(id) || ids[id] {
			t.Errorf("identifier %q is not allowed, or of two", id)
		}
		ids[id] = true
	}
	for _, p := range doc.Packages {
		add(p.ID)
	}
	for _, f := range doc.Files {
		add(f.ID)
	}
	for _, r := range doc.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%+v is about what is not there", r)
		}
	}
	if doc.Relationships[0] != (relationship{documentID, "DESCRIBES", imageID}) {
		t.Errorf("the document describes %+v", doc.Relationships[0])
	}
}

func TestReproducible(t *testing.T) {
	t.Parallel()
	in := files(t)
	first, a := describeImage(t, in)
	slices.Reverse(in)
	if _, b := describeImage(t, in); !bytes.Equal(a, b) {
		t.Error("the same files in another order give another document")
	}
	in[0].Content = append(slices.Clone(in[0].Content), 'x')
	if other, _ := describeImage(t, in); other.Namespace == first.Namespace {
		t.Error("another image has the same namespace")
	}
}

func TestProgramOfUnknownMaking(t *testing.T) {
	t.Parallel()
	if _, err := Image("x", "1", own, []File{{"/bin/sh", []byte("\x7fELF, and nothing else")}}); err == nil || !strings.Contains(err.Error(), "/bin/sh") {
		t.Errorf("accepted: %v", err)
	}
}
