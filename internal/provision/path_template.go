// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostpath"
)

// PathTemplate says where volumes of mode hostpath lie, by what is known of their claims;
// nil leaves that to the node.
type PathTemplate []pathPiece

// pathPiece is text, or a field to be filled in.
type pathPiece struct{ text, field string }

// The fields of a PathTemplate.
const (
	fieldClaimNamespace = ".PVC.Namespace"
	fieldClaimName      = ".PVC.Name"
	fieldVolumeName     = ".PV.Name"
)

var pathFields = []string{fieldClaimNamespace, fieldClaimName, fieldVolumeName}

// parsePathTemplate reads a template strictly. There are no functions, no conditions and no
// other fields, and the text between the fields is that of a path.
func parsePathTemplate(text string) (PathTemplate, error) {
	var t PathTemplate
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "{{")
		if before != "" {
			t = append(t, pathPiece{text: before})
		}
		if !found {
			break
		}
		inside, behind, closed := strings.Cut(after, "}}")
		field := strings.Trim(inside, " ")
		if !closed || !slices.Contains(pathFields, field) {
			return nil, fmt.Errorf("%q is not allowed in {{ }}; it is one of %s", field, strings.Join(pathFields, ", "))
		}
		t, rest = append(t, pathPiece{field: field}), behind
	}
	names := func(p pathPiece) bool { return p.field == fieldClaimName || p.field == fieldVolumeName }
	if !slices.ContainsFunc(t, names) {
		return nil, fmt.Errorf("it would be the same for all volumes: it needs {{%s}} or {{%s}}", fieldClaimName, fieldVolumeName)
	}
	// What is filled in are names of Kubernetes, so that whatever is wrong with the text
	// between them shows with any.
	if _, err := t.fill("n", "n", "n"); err != nil {
		return nil, err
	}
	return t, nil
}

// Fill returns the path of a volume for a claim; a Refusal when it cannot be one.
func (t PathTemplate) Fill(pvName string, claim *corev1.PersistentVolumeClaim) (string, error) {
	if t == nil {
		return "", nil
	}
	path, err := t.fill(claim.Namespace, claim.Name, pvName)
	if err != nil {
		return "", refuse("parameter %s: %v", ParameterPathTemplate, err)
	}
	return path, nil
}

func (t PathTemplate) fill(claimNamespace, claimName, pvName string) (string, error) {
	values := map[string]string{fieldClaimNamespace: claimNamespace, fieldClaimName: claimName, fieldVolumeName: pvName}
	var path strings.Builder
	for _, piece := range t {
		path.WriteString(piece.text)
		path.WriteString(values[piece.field])
	}
	return path.String(), hostpath.ValidatePath(path.String())
}

// setPathTemplate reads where volumes lie, and says what is wrong with it.
func (p *Parameters) setPathTemplate(params map[string]string) (problems []string) {
	text, set := params[ParameterPathTemplate]
	if !set {
		return nil
	}
	if p.Mode != berth.ModeHostpath && slices.Contains(allowedModes, string(p.Mode)) {
		return []string{fmt.Sprintf("parameter %s is for mode hostpath: a volume of mode %s is no directory; remove it", ParameterPathTemplate, p.Mode)}
	}
	t, err := parsePathTemplate(text)
	if err != nil {
		return []string{fmt.Sprintf("parameter %s: %v", ParameterPathTemplate, err)}
	}
	p.PathTemplate = t
	return nil
}
