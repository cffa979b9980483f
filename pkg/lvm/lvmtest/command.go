// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"slices"
	"strings"
)

// command is one parsed line.
type command struct {
	name    string
	flags   map[string][]string
	args    []string
	changes bool
	asks    bool
}

// syntax says which flags a command has here, and whether they take a value. A
// flag that is not listed is refused: what the fake does not know it cannot show.
type syntax struct {
	changes, asks bool
	flags         string
}

var commands = map[string]syntax{
	"lvs": {flags: "-a --config= --noheadings --nameprefixes --units= --nosuffix -o="},
	"pvs": {flags: "--segments --config= --noheadings --nameprefixes --units= --nosuffix -o= --foreign --shared"},
	"vgs": {flags: "--config= --noheadings --nameprefixes --units= --nosuffix -o= --foreign --shared"},
	"lvcreate": {true, true, "--autobackup= --config= --yes --type= --activate= --wipesignatures= --zero= --stripes= --stripesize= --mirrors= --extents= --addtag= --name=" +
		" --discards= --poolmetadataspare= --chunksize= --poolmetadatasize= --thinpool= --virtualsize= --snapshot --permission= --setactivationskip="},
	"lvextend":  {true, true, "--autobackup= --config= --yes --alloc= --stripes= --stripesize= --extents= --poolmetadatasize="},
	"lvremove":  {true, true, "--autobackup= --config= --yes --select="},
	"lvconvert": {true, true, "--autobackup= --config= --yes --repair --splitsnapshot --type= --zero= --discards= --chunksize= --poolmetadataspare= --poolmetadata="},
	"lvrename":  {true, true, "--autobackup= --config= --yes"},
	"vgreduce":  {true, true, "--autobackup= --config= --yes --removemissing"},
	"lvchange":  {true, true, "--autobackup= --config= --yes --activationmode= --activate= --refresh --errorwhenfull= --addtag= --deltag= --permission= --select="},
	"pvcreate":  {true, true, "--config= --uuid= --norestorefile --metadatasize= --dataalignment="},
	"pvchange":  {true, true, "--autobackup= --config= --yes --allocatable="},
	"pvmove":    {true, true, "--autobackup= --config= --yes --atomic --interval= --abort --name="},
	"pvremove":  {true, true, "--config="},
	"vgcreate":  {true, true, "--physicalextentsize= --addtag="},
	"vgextend":  {true, true, "--autobackup= --config= --yes --restoremissing"},
	"vgremove":  {true, true, "--config= --select="},
}

// split splits a line as lvm_split does: at white space, but not within quotes that
// open a word.
func split(line string) []string {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		var word string
		if quote := line[:1]; quote == "'" || quote == `"` {
			word, line, _ = strings.Cut(line[1:], quote)
		} else if end := strings.IndexAny(line, " \t"); end >= 0 {
			word, line = line[:end], line[end:]
		} else {
			word, line = line, ""
		}
		words = append(words, word)
	}
	return words
}

func parse(words []string) (command, error) {
	c := command{name: words[0], flags: map[string][]string{}}
	s, ok := commands[c.name]
	if !ok {
		return c, fmt.Errorf("No such command '%s'.  Try 'help'.", c.name) //nolint:staticcheck,revive // lvm's words.
	}
	c.changes, c.asks = s.changes, s.asks
	known := strings.Fields(s.flags)
	for rest := words[1:]; len(rest) > 0; rest = rest[1:] {
		word := rest[0]
		switch {
		case !strings.HasPrefix(word, "-"):
			c.args = append(c.args, word)
		case slices.Contains(known, word):
			c.flags[word] = append(c.flags[word], "")
		case slices.Contains(known, word+"=") && len(rest) > 1:
			c.flags[word] = append(c.flags[word], rest[1])
			rest = rest[1:]
		default:
			return c, fmt.Errorf("%s: unrecognized option '%s'", c.name, word)
		}
	}
	return c, nil
}

// accepts reports whether the configuration lets the command see a device.
func (c command) accepts(path string) bool {
	if !strings.Contains(c.value("--config"), "devices{") || c.name == "pvcreate" {
		return true
	}
	for pattern := range strings.SplitSeq(c.value("--config"), `"`) {
		escaped, ok := strings.CutPrefix(pattern, "a|^")
		if ok && strings.NewReplacer("[.]", ".", "[+]", "+").Replace(strings.TrimSuffix(escaped, "$|")) == path {
			return true
		}
	}
	return false
}

func (c command) has(flag string) bool { return len(c.flags[flag]) > 0 }

func (c command) value(flag string) string {
	if values := c.flags[flag]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// matches evaluates a selection: comparisons by = with a value or a list, && and
// || with && binding stronger, and parentheses.
func matches(expression string, fields map[string]string) (bool, error) {
	s := selection{rest: expression, fields: fields}
	ok := s.or()
	if s.rest != "" && s.err == nil {
		s.err = fmt.Errorf("Selection syntax error at %q", s.rest) //nolint:staticcheck // lvm's words.
	}
	return ok, s.err
}

type selection struct {
	rest   string
	fields map[string]string
	err    error
}

func (s *selection) or() bool {
	ok := s.and()
	for s.skip("||") {
		next := s.and()
		ok = ok || next
	}
	return ok
}

func (s *selection) and() bool {
	ok := s.one()
	for s.skip("&&") {
		next := s.one()
		ok = ok && next
	}
	return ok
}

func (s *selection) one() bool {
	if s.skip("(") {
		ok := s.or()
		if !s.skip(")") {
			s.err = fmt.Errorf("Selection syntax error: no ) at %q", s.rest) //nolint:staticcheck // lvm's words.
		}
		return ok
	}
	end := strings.IndexAny(s.rest, "&|)")
	if end < 0 {
		end = len(s.rest)
	}
	name, want, ok := strings.Cut(s.rest[:end], "=")
	s.rest = s.rest[end:]
	have, known := s.fields[name]
	if !ok || !known {
		s.err = fmt.Errorf("Unrecognised selection field: %s", name) //nolint:staticcheck // lvm's words.
		return false
	}
	return isList(have, want)
}

// isList compares a list with [all,of,it], {some,of,it} or a single value (lvmreport(7)).
func isList(have, want string) bool {
	list := strings.Split(have, ",")
	switch {
	case strings.HasPrefix(want, "["):
		wanted := strings.Split(strings.Trim(want, "[]"), ",")
		slices.Sort(list)
		slices.Sort(wanted)
		return slices.Equal(list, wanted)
	case strings.HasPrefix(want, "{"):
		for item := range strings.SplitSeq(strings.Trim(want, "{}"), ",") {
			if !slices.Contains(list, item) {
				return false
			}
		}
		return true
	}
	return have == want
}

func (s *selection) skip(token string) bool {
	rest, ok := strings.CutPrefix(s.rest, token)
	s.rest = rest
	return ok
}
