// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package chart tests deploy/chart with Helm's own engine: that it makes what the manifests
// make from which it is generated, that each value does what it says, and that what is not
// one is refused. It is a module of its own so that the product does not need Helm; the
// command is built from the same module (make helm).
package chart

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

const (
	deploy    = "../../deploy"
	kustomize = "../../build/tools/kustomize"
	keep      = "helm.sh/resource-policy"
)

// object is one of Kubernetes.
type object map[string]any

// key tells objects apart.
func (o object) key() string {
	name, _ := at(o, "metadata", "name").(string)
	namespace, _ := at(o, "metadata", "namespace").(string)
	kind, _ := o["kind"].(string)
	return kind + " " + strings.TrimPrefix(namespace+"/"+name, "/")
}

// at follows a path of keys and indexes; nil where there is nothing.
func at(value any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			switch m := value.(type) {
			case object:
				value = m[step]
			case map[string]any:
				value = m[step]
			default:
				return nil
			}
		case int:
			list, _ := value.([]any)
			if step >= len(list) {
				return nil
			}
			value = list[step]
		}
	}
	return value
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(deploy + "/chart")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// render returns what the chart makes of values, written as YAML, by key; and its notes.
func render(t *testing.T, values string) (map[string]object, string, error) {
	t.Helper()
	return renderIn(t, "berth-system", values)
}

func renderIn(t *testing.T, namespace, values string) (map[string]object, string, error) {
	t.Helper()
	set, err := common.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	c := load(t)
	all, err := util.ToRenderValues(c, set, common.ReleaseOptions{Name: "berth", Namespace: namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, "", err
	}
	// Strict finds what a template has misspelt. Helm itself is not: null takes a value away.
	files, err := (engine.Engine{Strict: !strings.Contains(values, "null")}).Render(c, all)
	if err != nil {
		return nil, "", err
	}
	objects, notes := map[string]object{}, ""
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			notes = text
			continue
		}
		for key, o := range parse(t, name, text) {
			if _, twice := objects[key]; twice {
				t.Errorf("%s is made twice", key)
			}
			objects[key] = o
		}
	}
	return objects, notes, nil
}

func mustRender(t *testing.T, values string) map[string]object {
	t.Helper()
	objects, _, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// parse reads documents of YAML.
func parse(t *testing.T, name, text string) map[string]object {
	t.Helper()
	objects := map[string]object{}
	for document := range strings.SplitSeq("\n"+text, "\n---") {
		var o object
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, document)
		}
		if len(o) > 0 {
			objects[o.key()] = o
		}
	}
	return objects
}

func read(t *testing.T, file string) map[string]object {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, file, string(content))
}

// build is what kustomize makes of a folder of deploy/.
func build(t *testing.T, folder string) map[string]object {
	t.Helper()
	command := exec.CommandContext(t.Context(), kustomize, "build", deploy+"/"+folder)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	out, err := command.Output()
	if errors.Is(err, os.ErrNotExist) {
		t.Fatal("kustomize is not built: run make verify-chart")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, &complaint)
	}
	return parse(t, folder, string(out))
}

// kept are what outlives a release: the records of disks and volumes, and what guards them.
func isKept(key string) bool {
	return strings.HasPrefix(key, "CustomResourceDefinition ") ||
		strings.HasPrefix(key, "ValidatingAdmissionPolicy") && (strings.HasSuffix(key, " berth-crd-delete") || strings.HasSuffix(key, " berth-localvolume-delete"))
}

// compare fails the test unless the chart makes the same. The namespace is the operator's
// with Helm; what is kept at a removal says so; neither is in the manifests.
func compare(t *testing.T, got, want map[string]object) {
	t.Helper()
	want = maps.Clone(want)
	delete(want, "Namespace berth-system")
	kept := 0
	for _, key := range slices.Sorted(maps.Keys(got)) {
		o := got[key]
		annotations, _ := at(o, "metadata", "annotations").(map[string]any)
		if isKept(key) != (annotations[keep] == "keep") {
			t.Errorf("%s is kept at a removal: %v", key, annotations[keep])
		}
		if isKept(key) {
			kept++
			delete(annotations, keep)
			if len(annotations) == 0 {
				delete(o["metadata"].(map[string]any), "annotations")
			}
		}
		if _, ok := want[key]; !ok {
			t.Errorf("the chart makes %s, and the manifests do not", key)
		} else if !reflect.DeepEqual(o, want[key]) {
			a, _ := yaml.Marshal(o)
			b, _ := yaml.Marshal(want[key])
			t.Errorf("%s differs:\n%s\nis in the manifests\n%s", key, a, b)
		}
	}
	if kept != 9 {
		t.Errorf("%d objects are kept, not 5 definitions, 2 policies and 2 bindings", kept)
	}
	for key := range want {
		if _, ok := got[key]; !ok {
			t.Errorf("the chart does not make %s", key)
		}
	}
}

func TestDefaultIsTheOneFileInstall(t *testing.T) {
	t.Parallel()
	compare(t, mustRender(t, ""), read(t, deploy+"/berth.yaml"))
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	compare(t, mustRender(t, "snapshots: {enabled: true}"), build(t, "snapshots"))
	// groups means both.
	compare(t, mustRender(t, "snapshots: {groups: true}"), build(t, "group-snapshots"))
	containers := at(mustRender(t, "snapshots: {enabled: true, image: 'r.example/s:1'}")["Deployment berth-system/berth-provisioner"], "spec", "template", "spec", "containers")
	if image := at(containers, 0, "image"); image != "r.example/s:1" {
		t.Errorf("csi-snapshotter is %v", image)
	}
}

func TestMonitoring(t *testing.T) {
	t.Parallel()
	got := mustRender(t, "monitoring: {enabled: true}")
	for key := range mustRender(t, "") {
		delete(got, key)
	}
	want := build(t, "monitoring")
	for _, o := range want {
		// kustomize labels all that is in a folder.
		labels, _ := at(o, "metadata", "labels").(map[string]any)
		delete(labels, "app.kubernetes.io/part-of")
		if len(labels) == 0 {
			delete(o["metadata"].(map[string]any), "labels")
		}
	}
	if !reflect.DeepEqual(got, want) {
		a, _ := yaml.Marshal(got)
		b, _ := yaml.Marshal(want)
		t.Errorf("%s\nis in deploy/monitoring\n%s", a, b)
	}
	labelled := mustRender(t, "monitoring: {enabled: true, labels: {release: prometheus}, dashboard: false}")
	for _, key := range []string{"PodMonitor berth-system/berth-node-agent", "PodMonitor berth-system/berth-provisioner", "PrometheusRule berth-system/berth"} {
		if at(labelled[key], "metadata", "labels", "release") != "prometheus" {
			t.Errorf("%s has not the label", key)
		}
	}
	if _, ok := labelled["ConfigMap berth-system/berth-dashboard"]; ok {
		t.Error("the dashboard is there though it is turned off")
	}
}

// Nothing of another namespace is named, in no expression either.
func TestAnotherNamespace(t *testing.T) {
	t.Parallel()
	objects, _, err := renderIn(t, "storage", "snapshots: {groups: true}\nmonitoring: {enabled: true, dashboard: false}")
	if err != nil {
		t.Fatal(err)
	}
	for key, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "berth-system") {
			t.Errorf("%s names berth-system", key)
		}
	}
	if expression, _ := at(objects["ValidatingAdmissionPolicy berth-agent-own-node"], "spec", "matchConditions", 0, "expression").(string); !strings.Contains(expression, "system:serviceaccount:storage:berth-node-agent") {
		t.Errorf("the guard of nodes is about %s", expression)
	}
}

func TestNotes(t *testing.T) {
	t.Parallel()
	_, notes, err := render(t, "provisioner: {replicas: 1}")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"KEEPS ALL DATA", "uninstall.md#take-everything-away", "replicas is 1"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
}
