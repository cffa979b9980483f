// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command checkdocs reads the Markdown of the repository and says what in it is
// not true of the repository: links and headings that are not there, make
// targets, files, flags and metrics that do not exist, shell snippets that do
// not parse, manifests that the API types refuse.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// problem is one untruth and where it stands.
type problem struct {
	file string
	line int
	text string
}

func main() {
	pages, err := readPages(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	facts, err := readFacts(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	problems := check(pages, facts)
	for _, p := range problems {
		fmt.Printf("%s:%d: %s\n", p.file, p.line, p.text)
	}
	if len(problems) > 0 {
		fmt.Fprintf(os.Stderr, "%d untrue places in the docs: correct them, or the code\n", len(problems))
		os.Exit(1)
	}
	fmt.Printf("    %d pages\n", len(pages))
}

// readPages reads every Markdown file below root that is ours.
func readPages(root string) ([]page, error) {
	var pages []page
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{".git", ".testbed", "build", "testdata"}, entry.Name()) {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".md") {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pages = append(pages, parsePage(path, string(content)))
		return nil
	})
	if err == nil && len(pages) == 0 {
		err = fmt.Errorf("no Markdown below %s", root)
	}
	return pages, err
}
