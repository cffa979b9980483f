// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// auditPolicy writes down each request once, when it is answered or, for a watch, begun.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
`

// auditInto makes the apiserver write down who asked for what.
func auditInto(apiserver *envtest.APIServer, directory string) error {
	policy := filepath.Join(directory, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	server.audit = filepath.Join(directory, "audit.log")
	apiserver.Configure().Append("audit-policy-file", policy).Append("audit-log-path", server.audit)
	return nil
}

// right is one verb on one resource.
type right struct{ verb, resource string }

func rightOf(verb, group, resource string) right {
	if group != "" {
		group = "." + group
	}
	name, subresource, _ := strings.Cut(resource, "/")
	if subresource != "" {
		subresource = "/" + subresource
	}
	return right{verb, name + group + subresource}
}

// auditEvent is what is of interest of an Event of audit.k8s.io/v1.
type auditEvent struct {
	Verb             string     `json:"verb"`
	User             auditUser  `json:"user"`
	ImpersonatedUser *auditUser `json:"impersonatedUser"`
	UserAgent        string     `json:"userAgent"`
	ObjectRef        *struct {
		Resource    string `json:"resource"`
		APIGroup    string `json:"apiGroup"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
}

type auditUser struct {
	Username string `json:"username"`
}

// askedFor is what the programs of a user have asked the apiserver for until now, without
// what the tests themselves have in its name.
func askedFor(t *testing.T, user string) map[right]bool {
	t.Helper()
	file, err := os.Open(server.audit)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	asked := map[right]bool{}
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return asked // the last line may still be written
		}
		var event auditEvent
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("read %s: %v", server.audit, err)
		}
		name := event.User.Username
		if event.ImpersonatedUser != nil {
			name = event.ImpersonatedUser.Username
		}
		if name != user || strings.HasPrefix(event.UserAgent, filepath.Base(os.Args[0])+"/") || event.ObjectRef == nil {
			continue
		}
		resource := event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			resource += "/" + event.ObjectRef.Subresource
		}
		asked[rightOf(event.Verb, event.ObjectRef.APIGroup, resource)] = true
	}
}

// granted is what a file of deploy/base/rbac allows.
func granted(t *testing.T, file string) map[right]bool {
	t.Helper()
	rights := map[right]bool{}
	add := func(rules []rbacv1.PolicyRule) {
		for _, rule := range rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						if group == "*" || resource == "*" || verb == "*" {
							t.Errorf("%s: a rule with a * allows more than anybody has looked at: %v", file, rule)
						}
						rights[rightOf(verb, group, resource)] = true
					}
				}
			}
		}
	}
	for _, role := range ofKind[rbacv1.ClusterRole](t, "rbac/"+file, "ClusterRole") {
		add(role.Rules)
	}
	for _, role := range ofKind[rbacv1.Role](t, "rbac/"+file, "Role") {
		add(role.Rules)
	}
	return rights
}

// fallback is why lists are allowed that the apiserver of this suite streams instead.
const fallback = "an informer lists where the apiserver streams no lists"

// checkRights compares what a program was allowed with what it has asked for. elsewhere
// are the rights that it needs for what this suite does not surely make it do, with what that is.
func checkRights(t *testing.T, file, user string, elsewhere map[right]string) {
	t.Helper()
	asked, allowed := askedFor(t, user), granted(t, file)
	byName := func(a, b right) int { return strings.Compare(a.resource+" "+a.verb, b.resource+" "+b.verb) }
	for _, r := range slices.SortedFunc(maps.Keys(asked), byName) {
		if !allowed[r] {
			t.Errorf("it asks to %s %s, which %s does not allow", r.verb, r.resource, file)
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(allowed), byName) {
		if _, known := elsewhere[r]; !asked[r] && !known {
			t.Errorf("%s allows to %s %s, which nothing asks for", file, r.verb, r.resource)
		}
	}
	for r, why := range elsewhere {
		if !allowed[r] {
			t.Errorf("%s does not allow to %s %s (%s)", file, r.verb, r.resource, why)
		}
	}
}
