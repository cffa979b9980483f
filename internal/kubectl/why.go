// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"
	"strings"
)

// answer is what why says: sentences, the one that decides first.
type answer struct {
	About    string   `json:"about"`
	Lines    []string `json:"lines"`
	Troubled bool     `json:"troubled"`
}

func (a *answer) say(format string, args ...any) {
	a.Lines = append(a.Lines, fmt.Sprintf(format, args...))
}

// blame is say for what is wrong.
func (a *answer) blame(format string, args ...any) {
	a.Troubled = true
	a.say(format, args...)
}

// why answers for one object.
func (p *plugin) why(ctx context.Context, args []string) (bool, error) {
	kind, name, ok := strings.Cut(args[0], "/")
	if !ok || name == "" {
		return false, fmt.Errorf("%w: %q must be pvc/NAME, disk/NAME or node/NAME", errUsage, args[0])
	}
	var a *answer
	var err error
	switch strings.ToLower(kind) {
	case "pvc", "claim", "persistentvolumeclaim":
		a, err = p.whyClaim(ctx, name)
	case "disk", "bd", "blockdevice":
		a, err = p.whyDisk(ctx, name)
	case "node", "no":
		a, err = p.whyNode(ctx, name)
	default:
		return false, fmt.Errorf("%w: %q is neither a pvc, a disk nor a node", errUsage, kind)
	}
	if err != nil {
		return false, err
	}
	if p.o.Output == "json" {
		return a.Troubled, p.json(a)
	}
	for _, line := range a.Lines {
		fmt.Fprintln(p.out, line)
	}
	return a.Troubled, nil
}
