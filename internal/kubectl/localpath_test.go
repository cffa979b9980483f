// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const plainConfig = `{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/opt/local-path-provisioner"]}],"cmdTimeoutSeconds":120}`

func TestParseLocalPath(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config, says string
	}{
		"as it is shipped":      {config: plainConfig},
		"a node without paths":  {config: `{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/a"]},{"node":"n1","paths":[]}]}`},
		"by class":              {config: `{"nodePathMap":[],"storageClassConfigs":{"ssd":{"nodePathMap":[{"node":"n1","paths":["/ssd/"]}]}}}`},
		"shared":                {config: `{"nodePathMap":[],"sharedFileSystemPath":"/nfs"}`},
		"no JSON":               {config: `nodePathMap:`, says: "read config.json"},
		"nothing":               {config: `{}`, says: "one of nodePathMap"},
		"two ways":              {config: `{"nodePathMap":[{"node":"n","paths":["/a"]}],"sharedFileSystemPath":"/nfs"}`, says: "one of nodePathMap"},
		"a relative path":       {config: `{"nodePathMap":[{"node":"n","paths":["opt"]}]}`, says: `the path "opt"`},
		"everything":            {config: `{"nodePathMap":[{"node":"n","paths":["/x/.."]}]}`, says: `the path "/x/.."`},
		"a path twice":          {config: `{"nodePathMap":[{"node":"n","paths":["/a","/a/"]}]}`, says: "is there twice"},
		"a node twice":          {config: `{"nodePathMap":[{"node":"n","paths":["/a"]},{"node":"n","paths":["/b"]}]}`, says: `the node "n" twice`},
		"a bad path of a class": {config: `{"storageClassConfigs":{"ssd":{"nodePathMap":[{"node":"n1","paths":["ssd"]}]}}}`, says: "storageClassConfigs of ssd"},
	} {
		_, err := parseLocalPath([]byte(tc.config))
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, tc.says)
		}
	}
}

// FuzzParseLocalPath: whatever is in it, what comes of it are absolute paths, and names that
// the API server takes.
func FuzzParseLocalPath(f *testing.F) {
	for _, config := range []string{plainConfig, `{"nodePathMap":[{"node":"a","paths":["/A b/ö","/a-b","/a/b"]}]}`, `{"storageClassConfigs":{"x":{"nodePathMap":[{"node":"n","paths":["/-"]}]}}}`} {
		f.Add(config)
	}
	class := storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
	f.Fuzz(func(t *testing.T, config string) {
		c, err := parseLocalPath([]byte(config))
		if err != nil {
			return
		}
		s, err := standFor(c, []storagev1.StorageClass{class}, []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}}})
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, o := range s.Objects {
			if set, ok := o.(*berth.PoolSet); ok {
				name := set.Name
				if seen[name] || name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Trim(name, "-") != name {
					t.Errorf("a PoolSet is called %q", name)
				}
				seen[name] = true
				if p := set.Spec.Hostpath.Path; !strings.HasPrefix(p, "/") || strings.Contains(p, "/../") {
					t.Errorf("path %q", p)
				}
			}
		}
	})
}

func localPathClass(name string, parameters map[string]string) storagev1.StorageClass {
	retain := corev1.PersistentVolumeReclaimRetain
	return storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: localPathProvisioner, Parameters: parameters, ReclaimPolicy: &retain}
}

func labelledNode(name string) corev1.Node {
	node := readyNode(name)
	node.Labels = map[string]string{corev1.LabelHostname: name + ".example"}
	return *node
}

func TestStandFor(t *testing.T) {
	t.Parallel()
	nodes := []corev1.Node{labelledNode("n1"), labelledNode("n2"), labelledNode("n3")}
	describe := func(o client.Object) string {
		switch o := o.(type) {
		case *berth.PoolSet:
			var selects []string
			for key, value := range o.Spec.NodeSelector {
				selects = append(selects, key+"="+value)
			}
			return strings.TrimSpace(o.Name + " " + o.Spec.Hostpath.Path + " " + strings.Join(selects, ","))
		case *storagev1.StorageClass:
			return o.Name + " of " + o.Parameters["pool"]
		}
		return "?"
	}
	for name, tc := range map[string]struct {
		config   string
		classes  []storagev1.StorageClass
		want     []string
		commands []string
		notes    []string
	}{
		"as it is shipped": {
			config: plainConfig, classes: []storagev1.StorageClass{localPathClass("local-path", nil)},
			want: []string{"opt-local-path-provisioner /opt/local-path-provisioner/berth", "berth-local-path of opt-local-path-provisioner"},
		},
		"some nodes": {
			config:  `{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/opt"]},{"node":"n1","paths":["/opt","/data1"]},{"node":"n3","paths":[]},{"node":"gone","paths":["/gone"]}]}`,
			classes: []storagev1.StorageClass{localPathClass("local-path", nil), localPathClass("ssd", map[string]string{"nodePath": "/data1", "pathPattern": "x"}), localPathClass("none", map[string]string{"nodePath": "/gone"})},
			want: []string{
				"opt /opt/berth pools.berth.dev/opt=true", "data1 /data1/berth kubernetes.io/hostname=n1.example",
				"berth-local-path of opt,data1", "berth-ssd of data1",
			},
			commands: []string{"kubectl label nodes n1 n2 pools.berth.dev/opt=true"},
			notes:    []string{"/gone is that of no node", `pathPattern "x"`, "StorageClass none: no path is left"},
		},
		"by class": {
			config:  `{"storageClassConfigs":{"ssd":{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/ssd"]}]},"nfs":{"sharedFileSystemPath":"/nfs"}}}`,
			classes: []storagev1.StorageClass{localPathClass("nfs", nil), localPathClass("other", nil), localPathClass("ssd", nil)},
			want:    []string{"ssd /ssd/berth", "berth-ssd of ssd"},
			notes:   []string{"StorageClass nfs: sharedFileSystemPath", "StorageClass other: config.json has no nodePathMap"},
		},
		"names that would be alike": {
			config: `{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/a/b","/a-b"]}]}`,
			want:   []string{"a-b /a/b/berth", "a-b-b0e3b4b5 /a-b/berth"}, notes: []string{"no StorageClass"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := parseLocalPath([]byte(tc.config))
			if err != nil {
				t.Fatal(err)
			}
			s, err := standFor(c, tc.classes, nodes)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range s.Objects {
				got = append(got, describe(o))
			}
			if name == "names that would be alike" {
				_, rest, _ := strings.Cut(got[1], " ")
				got[1] = "a-b-b0e3b4b5 " + rest // whatever the sum is
			}
			if !slices.Equal(got, tc.want) || !slices.Equal(s.Commands, tc.commands) {
				t.Errorf("got %q, commands %q; want %q, %q", got, s.Commands, tc.want, tc.commands)
			}
			for _, note := range tc.notes {
				if !slices.ContainsFunc(s.Notes, func(n string) bool { return strings.Contains(n, note) }) {
					t.Errorf("the notes %q do not say %q", s.Notes, note)
				}
			}
		})
	}
}

func TestImportConfig(t *testing.T) {
	t.Parallel()
	class := localPathClass("local-path", nil)
	configMap := func(namespace, data string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "local-path-config"}, Data: map[string]string{"config.json": data}}
	}
	for name, tc := range map[string]struct {
		configs []*corev1.ConfigMap
		args    []string
		code    int
		says    []string
	}{
		"as it is shipped": {
			configs: []*corev1.ConfigMap{configMap("local-path-storage", plainConfig)},
			says: []string{
				"---\napiVersion: berth.dev/v1alpha1\nkind: PoolSet\nmetadata:\n  name: opt-local-path-provisioner\nspec:\n  hostpath:\n    path: /opt/local-path-provisioner/berth\n  kind: hostpath\n",
				"name: berth-local-path", "pool: opt-local-path-provisioner", "reclaimPolicy: Retain", "provisioner: berth.dev",
			},
		},
		"of k3s":        {configs: []*corev1.ConfigMap{configMap("kube-system", plainConfig)}, says: []string{"ConfigMap kube-system/local-path-config"}},
		"elsewhere":     {configs: []*corev1.ConfigMap{configMap("elsewhere", plainConfig)}, args: []string{"--config=elsewhere/local-path-config"}, says: []string{"kind: PoolSet"}},
		"as JSON":       {configs: []*corev1.ConfigMap{configMap("kube-system", plainConfig)}, args: []string{"-o", "json"}, says: []string{`"objects": [`}},
		"nowhere":       {code: exitUnasked, says: []string{"there is no ConfigMap", "--config"}},
		"damaged":       {configs: []*corev1.ConfigMap{configMap("kube-system", "{")}, code: exitUnasked, says: []string{"read config.json"}},
		"shared":        {configs: []*corev1.ConfigMap{configMap("kube-system", `{"sharedFileSystemPath":"/nfs"}`)}, code: exitTrouble, says: []string{"several nodes mount"}},
		"a bad name":    {args: []string{"--config=x"}, code: exitUsage, says: []string{"NAMESPACE/NAME"}},
		"of others":     {args: []string{"--dry-run"}, code: exitUsage, says: []string{"are of forget-node only"}},
		"all and one":   {args: []string{"--all", "data"}, code: exitUsage, says: []string{"name a claim, or give --all"}},
		"nothing named": {args: []string{"--yes"}, code: exitUsage, says: []string{"name a claim or pv/NAME"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			c.add(&class)
			for _, o := range tc.configs {
				c.add(o)
			}
			code, out, errs := c.run(t, append([]string{"import", "local-path"}, tc.args...)...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d: %s%s", code, tc.code, out, errs)
			}
			for _, says := range tc.says {
				if !strings.Contains(out+errs, says) {
					t.Errorf("it says\n%s%s\nand not %q", out, errs, says)
				}
			}
		})
	}
	if code, _, errs := newCluster().run(t, "import", "nfs"); code != exitUsage || !strings.Contains(errs, `nothing to import from "nfs"`) {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if code, _, errs := newCluster().run(t, "status", "--all"); code != exitUsage || !strings.Contains(errs, "--all is of import only") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
