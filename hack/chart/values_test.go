// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
	yaml3 "sigs.k8s.io/yaml/goyaml.v3"
)

var update = flag.Bool("update", false, "write the table of deploy/chart/README.md")

const (
	daemonSet  = "DaemonSet berth-system/berth-node-agent"
	deployment = "Deployment berth-system/berth-provisioner"
)

// Each value comes out where it belongs.
func TestValues(t *testing.T) {
	t.Parallel()
	pod := []any{"spec", "template", "spec"}
	within := func(path ...any) []any { return append(slices.Clone(pod), path...) }
	container := func(n int, path ...any) []any { return within(append([]any{"containers", n}, path...)...) }
	args := container(0, "args")
	for _, test := range []struct {
		values string
		object string
		path   []any
		want   string // as YAML; of args what is among them
	}{
		{"image: {repository: r.example/b, tag: v1}", daemonSet, container(0, "image"), "r.example/b:v1"},
		{"image: {tag: v1}", deployment, container(0, "image"), "ghcr.io/berth-dev/berth:v1"},
		{"image: {tag: v1, digest: 'sha256:" + strings.Repeat("ab", 32) + "'}", deployment, container(0, "image"), "ghcr.io/berth-dev/berth@sha256:" + strings.Repeat("ab", 32)},
		{"image: {pullPolicy: Always}", daemonSet, container(0, "imagePullPolicy"), "Always"},
		{"image: {pullPolicy: Always}", deployment, container(0, "imagePullPolicy"), "Always"},
		{"imagePullSecrets: [{name: s}]", daemonSet, within("imagePullSecrets"), "[{name: s}]"},
		{"imagePullSecrets: [{name: s}]", deployment, within("imagePullSecrets"), "[{name: s}]"},
		{"log: {level: debug}", daemonSet, args, "--log-level=debug"},
		{"log: {level: debug}", deployment, args, "--log-level=debug"},
		{"log: {format: text}", daemonSet, args, "--log-format=text"},
		{"log: {format: text}", deployment, args, "--log-format=text"},
		{"kubeletDir: /data/kubelet", daemonSet, args, "--kubelet-plugin-dir=/data/kubelet/plugins/berth.dev"},
		{"kubeletDir: /data/kubelet", daemonSet, within("volumes", 0, "hostPath", "path"), "/data/kubelet/plugins/berth.dev"},
		{"kubeletDir: /data/kubelet", daemonSet, within("volumes", 1, "hostPath", "path"), "/data/kubelet/plugins_registry"},
		{"filters: 'filterconfigs: []'", "ConfigMap berth-system/berth-config", []any{"data", `filters.yaml`}, "'filterconfigs: []'"},
		{"agent: {nodeSelector: {disks: 'true'}}", daemonSet, within("nodeSelector"), "{disks: 'true'}"},
		{"agent: {affinity: {nodeAffinity: {a: 1}}}", daemonSet, within("affinity"), "{nodeAffinity: {a: 1}}"},
		{"agent: {tolerations: [{key: a}]}", daemonSet, within("tolerations"), "[{key: a}]"},
		{"agent: {tolerations: []}", daemonSet, within("tolerations"), "null"},
		{"agent: {resources: {limits: {memory: 1Gi}}}", daemonSet, container(0, "resources", "limits"), "{memory: 1Gi}"},
		{"agent: {priorityClassName: mine}", daemonSet, within("priorityClassName"), "mine"},
		{"agent: {maxUnavailable: 1}", daemonSet, []any{"spec", "updateStrategy", "rollingUpdate", "maxUnavailable"}, "1"},
		{"agent: {podAnnotations: {a: b}}", daemonSet, []any{"spec", "template", "metadata", "annotations"}, "{a: b}"},
		{"agent: {extraArgs: [--wipe-parallelism=1]}", daemonSet, args, "--wipe-parallelism=1"},
		{"provisioner: {replicas: 3}", deployment, []any{"spec", "replicas"}, "3"},
		{"provisioner: {nodeSelector: {a: b}}", deployment, within("nodeSelector"), "{a: b}"},
		{"provisioner: {affinity: null}", deployment, within("affinity"), "null"},
		{"provisioner: {tolerations: [{key: a}]}", deployment, within("tolerations"), "[{key: a}]"},
		{"provisioner: {resources: {limits: {memory: 1Gi}}}", deployment, container(0, "resources", "limits"), "{memory: 1Gi}"},
		{"provisioner: {priorityClassName: mine}", deployment, within("priorityClassName"), "mine"},
		{"provisioner: {podAnnotations: {a: b}}", deployment, []any{"spec", "template", "metadata", "annotations"}, "{a: b}"},
		{"provisioner: {extraArgs: [--workers=1]}", deployment, args, "--workers=1"},
		{"resizer: {image: 'r.example/z:1'}", deployment, container(1, "image"), "r.example/z:1"},
		{"resizer: {resources: {limits: {memory: 1Gi}}}", deployment, container(1, "resources", "limits"), "{memory: 1Gi}"},
		{
			"storageClasses: [{name: a, parameters: {mode: lvm, pool: fast, requireQuota: true}}]", "StorageClass a", nil,
			"{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: a}, provisioner: berth.dev, parameters: {mode: lvm, pool: fast, requireQuota: 'true'}, volumeBindingMode: WaitForFirstConsumer, allowVolumeExpansion: true, reclaimPolicy: Delete}",
		},
		{"storageClasses: [{name: a, default: true, parameters: {mode: device}}]", "StorageClass a", []any{"metadata", "annotations"}, "{storageclass.kubernetes.io/is-default-class: 'true'}"},
		{"storageClasses: [{name: a, allowVolumeExpansion: false, parameters: {mode: device}}]", "StorageClass a", []any{"allowVolumeExpansion"}, "false"},
		{"storageClasses: [{name: a, reclaimPolicy: Retain, mountOptions: [noatime], parameters: {mode: device}}, {name: b, parameters: {mode: lvm}}]", "StorageClass a", []any{"mountOptions"}, "[noatime]"},
	} {
		objects := mustRender(t, test.values)
		got := at(objects[test.object], test.path...)
		if test.path == nil {
			got = map[string]any(objects[test.object])
		}
		var want any
		if err := yaml.Unmarshal([]byte(test.want), &want); err != nil {
			t.Fatal(err)
		}
		if list, ok := got.([]any); ok && strings.HasPrefix(test.want, "--") {
			if !slices.Contains(list, want) {
				t.Errorf("%s: the arguments of %s are %v", test.values, test.object, list)
			}
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v of %s is %v, not %s", test.values, test.path, test.object, got, test.want)
		}
	}
}

// What is no value, or cannot be one, is refused and named.
func TestBadValues(t *testing.T) {
	t.Parallel()
	for values, want := range map[string]string{
		"agents: {}":                                           "agents",
		"agent: {toleration: []}":                              "toleration",
		"log: {level: loud}":                                   "/log/level",
		"log: {format: xml}":                                   "/log/format",
		"kubeletDir: var/lib/kubelet":                          "/kubeletDir",
		"kubeletDir: /var/lib/kubelet/":                        "/kubeletDir",
		"image: {digest: abc}":                                 "/image/digest",
		"image: {pullPolicy: Sometimes}":                       "/image/pullPolicy",
		"image: {repository: ''}":                              "/image/repository",
		"provisioner: {replicas: 0}":                           "/provisioner/replicas",
		"provisioner: {replicas: two}":                         "/provisioner/replicas",
		"agent: {maxUnavailable: 0}":                           "/agent/maxUnavailable",
		"agent: {maxUnavailable: 0%}":                          "/agent/maxUnavailable",
		"agent: {extraArgs: [log-level=debug]}":                "/agent/extraArgs/0",
		"resizer: {image: registry.example/resizer}":           "/resizer/image",
		"storageClasses: [{name: a}]":                          "parameters",
		"storageClasses: [{name: A, parameters: {mode: lvm}}]": "/storageClasses/0/name",
		"storageClasses: [{name: a, parameters: {mode: zfs}}]": "/storageClasses/0/parameters/mode",
		"storageClasses: [{name: a, parameters: {mode: lvm}, reclaimPolicy: Recycle}]": "/storageClasses/0/reclaimPolicy",
		"snapshots: {enabled: 'yes'}": "/snapshots/enabled",
		"imagePullSecrets: [regcred]": "/imagePullSecrets/0",
	} {
		if _, _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something about %s", values, err, want)
		}
	}
}

// row is a value: its path, its default and what its comment says.
type row struct{ path, def, text string }

// rows reads the comments of values.yaml. A value is what has one.
func rows(t *testing.T, node *yaml3.Node, path string) []row {
	t.Helper()
	var all []row
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		here := strings.TrimPrefix(path+"."+key.Value, ".")
		comment := strings.TrimSpace(strings.TrimPrefix(key.HeadComment, "#"))
		if comment == "" && value.Kind == yaml3.MappingNode && len(value.Content) > 0 {
			all = append(all, rows(t, value, here)...)
			continue
		}
		if comment == "" || strings.Contains(comment, "\n") {
			t.Errorf("%s has no comment of one line in values.yaml: %q", here, comment)
		}
		var def any
		if err := value.Decode(&def); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		shown := "`" + string(text) + "`"
		if len(text) > 60 {
			shown = "see `values.yaml`"
		}
		all = append(all, row{here, shown, comment})
	}
	return all
}

func TestReadmeHasTheValues(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(deploy + "/chart/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml3.Node
	if err := yaml3.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| value | default | |\n|---|---|---|\n")
	for _, r := range rows(t, document.Content[0], "") {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", r.path, r.def, r.text)
	}
	const begin, end = "<!-- values -->\n", "<!-- end of values -->"
	file := deploy + "/chart/README.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no %s", file, begin)
	}
	want := before + begin + table.String() + end + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page) != want {
		t.Errorf("the table of %s is not that of values.yaml: run go -C hack/chart test -run Readme -update", file)
	}
}
