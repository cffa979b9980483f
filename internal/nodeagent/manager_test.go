// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The mapper asks no API server, so it must know all that an agent has a right to: what it
// does not know cannot be read, however much it may.
func TestMapperKnowsWhatAgentsMayRead(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../deploy/base/rbac/node-agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	mapper, seen := NewMapper(), 0
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), len(raw)); ; {
		role := rbacv1.ClusterRole{}
		if err := decoder.Decode(&role); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			if !slices.Contains(rule.Verbs, "list") && !slices.Contains(rule.Verbs, "get") {
				continue // Events are written by a client of their own
			}
			for _, resource := range rule.Resources {
				if strings.Contains(resource, "/") {
					continue
				}
				seen++
				if _, err := mapper.KindFor(schema.GroupVersionResource{Group: rule.APIGroups[0], Resource: resource}); err != nil {
					t.Errorf("%s: %v", resource, err)
				}
			}
		}
	}
	if seen < 8 {
		t.Errorf("only %d resources were looked at", seen)
	}
}
