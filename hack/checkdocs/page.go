// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
	"unicode"
)

// page is a Markdown file, taken apart.
type page struct {
	path    string
	anchors map[string]bool
	links   []span
	// code are the inline code spans, fences the fenced blocks.
	code   []span
	fences []fence
}

// span is a piece of text and its line.
type span struct {
	line int
	text string
}

// fence is a fenced code block; line is that of its first line of content.
type fence struct {
	line     int
	language string
	lines    []string
}

var (
	linkPattern = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	codePattern = regexp.MustCompile("`([^`]+)`")
)

func parsePage(path, content string) page {
	p := page{path: path, anchors: map[string]bool{}}
	var open *fence
	for i, line := range strings.Split(content, "\n") {
		number := i + 1
		trimmed := strings.TrimSpace(line)
		if language, ok := strings.CutPrefix(trimmed, "```"); ok {
			if open == nil {
				open = &fence{line: number + 1, language: strings.TrimSpace(language)}
			} else {
				p.fences = append(p.fences, *open)
				open = nil
			}
			continue
		}
		if open != nil {
			open.lines = append(open.lines, line)
			continue
		}
		if strings.HasPrefix(line, "#") {
			p.anchors[slug(strings.TrimLeft(line, "# "))] = true
		}
		for _, match := range codePattern.FindAllStringSubmatch(line, -1) {
			p.code = append(p.code, span{number, match[1]})
		}
		for _, match := range linkPattern.FindAllStringSubmatch(codePattern.ReplaceAllString(line, ""), -1) {
			p.links = append(p.links, span{number, match[1]})
		}
	}
	return p
}

// slug is the anchor that forges make of a heading: lower case, spaces to
// dashes, everything else but letters, digits, '-' and '_' dropped.
func slug(heading string) string {
	var out strings.Builder
	for _, char := range strings.ToLower(strings.ReplaceAll(heading, "`", "")) {
		switch {
		case char == ' ':
			out.WriteByte('-')
		case char == '-' || char == '_' || unicode.IsLetter(char) || unicode.IsDigit(char):
			out.WriteRune(char)
		}
	}
	return out.String()
}

// commands are the shell lines of a block: all of a script; of a session what
// follows "$ ", with its continuation lines.
func (f fence) commands() (script string, ok bool) {
	switch f.language {
	case "sh", "bash", "shell":
		return strings.Join(f.lines, "\n") + "\n", true
	case "console":
		var lines []string
		continued := false
		for _, line := range f.lines {
			if command, typed := strings.CutPrefix(strings.TrimSpace(line), "$ "); typed {
				line = command
			} else if !continued {
				continue
			}
			lines = append(lines, line)
			continued = strings.HasSuffix(line, `\`)
		}
		return strings.Join(lines, "\n") + "\n", true
	}
	return "", false
}
