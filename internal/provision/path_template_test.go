// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

func TestPathTemplate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"{{.PVC.Namespace}}/{{.PVC.Name}}":             "shop/db",
		"{{ .PVC.Namespace }}/{{ .PVC.Name }}":         "shop/db",
		"{{.PV.Name}}":                                 "pvc-1",
		"k8s/{{.PVC.Namespace}}_{{.PVC.Name}}/data":    "k8s/shop_db/data",
		"{{.PVC.Name}}-{{.PV.Name}}":                   "db-pvc-1",
		"a/b/c/d/{{.PVC.Namespace}}/{{.PVC.Name}}/e/f": "a/b/c/d/shop/db/e/f",
	} {
		params, err := provision.ParseParameters(map[string]string{"mode": "hostpath", "pool": "local", "pathTemplate": text})
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
		if got, err := params.PathTemplate.Fill("pvc-1", claim); err != nil || got != want {
			t.Errorf("%q is %q, %v, want %q", text, got, err, want)
		}
		claim.Name = strings.Repeat("n", 253)
		if got, err := params.PathTemplate.Fill("pvc-1", claim); len(got) > 253+len(text) || err != nil && !strings.Contains(err.Error(), "parameter pathTemplate") {
			t.Errorf("%q of a long name is %q, %v", text, got, err)
		}
	}
	long := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: strings.Repeat("n", 253)}}
	params, err := provision.ParseParameters(map[string]string{"mode": "hostpath", "pool": "local", "pathTemplate": "x-{{.PVC.Name}}"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := params.PathTemplate.Fill("pvc-1", long); err == nil {
		t.Errorf("a name that is too long for a directory became %q", got)
	}
}

func TestPathTemplateIsStrict(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"":                                   "the same for all volumes",
		"data":                               "the same for all volumes",
		"{{.PVC.Namespace}}":                 "the same for all volumes",
		"{{.PVC.Name":                        "not allowed in {{ }}",
		"{{.PVC.Name}":                       "not allowed in {{ }}",
		"{{}}/{{.PVC.Name}}":                 `"" is not allowed in {{ }}`,
		"{{.PVC.Annotations}}/{{.PVC.Name}}": "not allowed in {{ }}; it is one of .PVC.Namespace, .PVC.Name, .PV.Name",
		"{{.PVC.name}}":                      "not allowed in {{ }}",
		"{{.PVC.Name | upper}}":              "not allowed in {{ }}",
		"{{printf \"x\"}}/{{.PVC.Name}}":     "not allowed in {{ }}",
		"{{if .PVC.Name}}x{{end}}":           "not allowed in {{ }}",
		"{{{.PVC.Name}}}":                    "not allowed in {{ }}",
		"{{- .PVC.Name}}":                    "not allowed in {{ }}",
		"/{{.PVC.Name}}":                     "is no name",
		"{{.PVC.Name}}/":                     "is no name",
		"a//{{.PVC.Name}}":                   "is no name",
		"../{{.PVC.Name}}":                   "is no name",
		"{{.PVC.Name}}/../..":                "is no name",
		".trash/{{.PVC.Name}}":               "is no name",
		"Data/{{.PVC.Name}}":                 "is no name",
		"${pvc.name}/{{.PVC.Name}}":          "is no name",
		"{{.PVC.Name}}}}":                    "is no name",
		"a/a/a/a/a/a/a/a/{{.PVC.Name}}":      "more than 8 parts",
	} {
		_, err := provision.ParseParameters(map[string]string{"mode": "hostpath", "pool": "local", "pathTemplate": text})
		if err == nil || !strings.Contains(err.Error(), "parameter pathTemplate: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want a refusal that says %q", text, err, says)
		}
	}
	for _, mode := range []map[string]string{{"mode": "lvm", "pool": "fast"}, {"mode": "device"}} {
		mode["pathTemplate"] = "{{.PVC.Name}}"
		if _, err := provision.ParseParameters(mode); err == nil || !strings.Contains(err.Error(), "parameter pathTemplate is for mode hostpath") {
			t.Errorf("%v: %v", mode, err)
		}
	}
	_, err := provision.ParseParameters(map[string]string{"mode": "hostpath", "pool": "local", "pathPattern": "{{.PVC.Name}}"})
	if err == nil || !strings.Contains(err.Error(), `did you mean "pathTemplate"?`) {
		t.Errorf("by the name of another driver: %v", err)
	}
}

// The volume is asked for where the claim's names put it, and for as long as the class says;
// one that was begun under other conditions is made anew, if a person says so where it may have been used.
func TestProvisionOfDirectories(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.Pause()
	p := provisioner(c, nil)
	params := map[string]string{"mode": "hostpath", "pool": "dirs", "retainFor": "72h", "pathTemplate": "{{.PVC.Namespace}}/{{.PVC.Name}}"}
	want := func(when, dir string, retainFor time.Duration) {
		t.Helper()
		spec := c.Tracker.Get("pvc-c1a1").Spec
		if spec.Directory != dir || provision.RetentionOf(spec) != retainFor {
			t.Errorf("%s: it lies at %q and is kept for %s", when, spec.Directory, provision.RetentionOf(spec))
		}
	}
	if _, state, err := p.Provision(within(t, 200*time.Millisecond), options(claim("1Gi"), class(params), node)); state != controller.ProvisioningInBackground {
		t.Fatalf("%v, %v", state, err)
	}
	want("asked for", "default/data", 72*time.Hour)
	agent.Resume()
	eventually(t, "the node makes it", func() bool { return agent.Carved() == 1 })
	for _, change := range []struct {
		key, value, dir string
		retainFor       time.Duration
	}{
		{"retainFor", "0s", "default/data", 0},
		{"pathTemplate", "x/{{.PV.Name}}", "x/pvc-c1a1", 0},
	} {
		params[change.key] = change.value
		p = provisioner(c, nil) // one that has handed out nothing
		if _, _, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(params), node)); err != nil {
			t.Fatal(err)
		}
		want("with another "+change.key, change.dir, change.retainFor)
		allowDelete(t, c, "pvc-c1a1")
	}
	if agent.Made() != 3 || agent.Carved() != 1 {
		t.Errorf("made %d, there are %d", agent.Made(), agent.Carved())
	}

	long := claim("1Gi")
	long.Name, params["pathTemplate"] = strings.Repeat("n", 253), "x-{{.PVC.Name}}"
	_, state, err := p.Provision(within(t, 10*time.Second), options(long, class(params), node))
	if state != controller.ProvisioningFinished || err == nil || !strings.Contains(err.Error(), "parameter pathTemplate") {
		t.Errorf("a name that is too long: %v, %v", state, err)
	}
}

func FuzzPathTemplate(f *testing.F) {
	for _, seed := range []string{"{{.PVC.Namespace}}/{{.PVC.Name}}", "{{.PV.Name}}/..", "{{ .PVC.Name }}{{", "}}{{.PV.Name}}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		params, err := provision.ParseParameters(map[string]string{"mode": "hostpath", "pool": "local", "pathTemplate": text})
		if err != nil {
			return
		}
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db.x"}}
		path, err := params.PathTemplate.Fill("pvc-1", claim)
		if err != nil {
			return
		}
		if strings.HasPrefix(path, "/") || strings.Contains("/"+path, "/.") || strings.Contains(path, "//") || strings.HasSuffix(path, "/") {
			t.Errorf("%q became %q", text, path)
		}
	})
}
