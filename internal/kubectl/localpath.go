// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// defaultNode stands in config.json for all nodes that are not listed.
	defaultNode = "DEFAULT_PATH_FOR_NON_LISTED_NODES"
	// poolLabel is the prefix of the labels that choose the nodes of a pool.
	poolLabel = "pools.berth.dev/"
	// rootName of the directory that becomes the root of a pool, in a directory of
	// local-path-provisioner: there it is on the same mount as the volumes, whatever is mounted.
	rootName = "berth"
)

// localPathConfig is config.json of local-path-provisioner, as far as it says where volumes
// are.
type localPathConfig struct {
	pathMap

	StorageClassConfigs map[string]pathMap `json:"storageClassConfigs"`
}

// pathMap says where the volumes of one class, or of all, are.
type pathMap struct {
	NodePathMap          []nodePaths `json:"nodePathMap"`
	SharedFileSystemPath string      `json:"sharedFileSystemPath"`
}

type nodePaths struct {
	Node  string   `json:"node"`
	Paths []string `json:"paths"`
}

// errShared: its volumes are not a node's.
var errShared = errors.New("sharedFileSystemPath is a filesystem that several nodes mount, and a volume of Berth belongs to the one node whose disk it is on: it cannot be moved; leave it to local-path-provisioner")

// parseLocalPath reads config.json by the rules that local-path-provisioner has for it.
func parseLocalPath(data []byte) (*localPathConfig, error) {
	c := &localPathConfig{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	ways := 0
	for _, used := range []bool{len(c.NodePathMap) > 0, c.SharedFileSystemPath != "", len(c.StorageClassConfigs) > 0} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		return nil, errors.New("read config.json: it must have one of nodePathMap, sharedFileSystemPath and storageClassConfigs")
	}
	if err := c.clean(); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	for _, class := range slices.Sorted(maps.Keys(c.StorageClassConfigs)) {
		m := c.StorageClassConfigs[class]
		if err := m.clean(); err != nil {
			return nil, fmt.Errorf("read config.json: storageClassConfigs of %s: %w", class, err)
		}
	}
	return c, nil
}

func (m pathMap) clean() error {
	nodes := map[string]bool{}
	for _, n := range m.NodePathMap {
		if n.Node == "" || nodes[n.Node] {
			return fmt.Errorf("nodePathMap has the node %q twice, or without a name", n.Node)
		}
		nodes[n.Node] = true
		seen := map[string]bool{}
		for i, p := range n.Paths {
			clean := path.Clean(p)
			if !path.IsAbs(p) || clean == "/" || seen[clean] {
				return fmt.Errorf("nodePathMap has the path %q for node %s, which is not absolute, is /, or is there twice", p, n.Node)
			}
			seen[clean], n.Paths[i] = true, clean
		}
	}
	return nil
}

// of returns the paths of a node.
func (m pathMap) of(node string) []string {
	for _, name := range []string{node, defaultNode} {
		if i := slices.IndexFunc(m.NodePathMap, func(n nodePaths) bool { return n.Node == name }); i >= 0 {
			return m.NodePathMap[i].Paths
		}
	}
	return nil
}

// everywhere reports whether every node has a path, also those that come later.
func (m pathMap) everywhere(p string) bool {
	for _, n := range m.NodePathMap {
		if !slices.Contains(n.Paths, p) {
			return false
		}
	}
	return len(m.of(defaultNode)) > 0
}

// paths are those of all nodes, each once, in the order in which they stand.
func (m pathMap) paths() (all []string) {
	for _, n := range m.NodePathMap {
		for _, p := range n.Paths {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// stand is what stands for a configuration of local-path-provisioner.
type stand struct {
	Objects []client.Object `json:"objects"`
	// Commands are to be run before.
	Commands []string `json:"commands,omitempty"`
	// Notes say what is not taken over.
	Notes []string `json:"notes,omitempty"`
}

func (s *stand) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// standFor returns the PoolSets and StorageClasses that stand for a configuration. classes are
// those of local-path-provisioner, and nodes all nodes of the cluster.
func standFor(c *localPathConfig, classes []storagev1.StorageClass, nodes []corev1.Node) (*stand, error) {
	s := &stand{Objects: []client.Object{}}
	if c.SharedFileSystemPath != "" {
		return nil, errShared
	}
	pools := []pathMap{c.pathMap}
	for _, class := range slices.Sorted(maps.Keys(c.StorageClassConfigs)) {
		if c.StorageClassConfigs[class].SharedFileSystemPath != "" {
			s.note("StorageClass %s: %s", class, errShared.Error())
			continue
		}
		pools = append(pools, c.StorageClassConfigs[class])
	}
	names := map[string]string{}
	for _, m := range pools {
		for _, p := range m.paths() {
			if names[p] == "" {
				names[p] = poolName(p, names)
				s.addPool(names[p], p, pools, nodes)
			}
		}
	}
	for i := range classes {
		s.addClass(&classes[i], c, names)
	}
	if len(classes) == 0 {
		s.note("There is no StorageClass of that provisioner, so that none is made.")
	}
	return s, nil
}

// poolName makes a name of a path, which no other one has.
func poolName(p string, taken map[string]string) string {
	const longest = 50
	name := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, p), "-")
	isTaken := slices.Contains(slices.Collect(maps.Values(taken)), name)
	if name == "" || len(name) > longest || isTaken || strings.Contains(name, "--") {
		sum := fnv.New32a()
		_, _ = sum.Write([]byte(p))
		name = strings.Trim(name[:min(len(name), longest-9)], "-") + fmt.Sprintf("-%08x", sum.Sum32())
	}
	return strings.TrimPrefix(name, "-")
}

// addPool adds the PoolSet of a path.
func (s *stand) addPool(name, p string, maps []pathMap, nodes []corev1.Node) {
	set := &berth.PoolSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: berth.GroupVersion.String(), Kind: "PoolSet"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       berth.PoolSetSpec{Kind: berth.PoolHostpath, Hostpath: &berth.HostpathPool{Path: path.Join(p, rootName)}},
	}
	var have []*corev1.Node
	for i := range nodes {
		if slices.ContainsFunc(maps, func(m pathMap) bool { return slices.Contains(m.of(nodes[i].Name), p) }) {
			have = append(have, &nodes[i])
		}
	}
	switch {
	case slices.ContainsFunc(maps, func(m pathMap) bool { return m.everywhere(p) }):
	case len(have) == 0:
		s.note("The path %s is that of no node there is: no PoolSet is made of it.", p)
		return
	case len(have) == 1 && have[0].Labels[corev1.LabelHostname] != "":
		set.Spec.NodeSelector = map[string]string{corev1.LabelHostname: have[0].Labels[corev1.LabelHostname]}
	default:
		names := make([]string, len(have))
		for i, node := range have {
			names[i] = node.Name
		}
		set.Spec.NodeSelector = map[string]string{poolLabel + name: "true"}
		s.Commands = append(s.Commands, fmt.Sprintf("kubectl label nodes %s %s%s=true", strings.Join(names, " "), poolLabel, name))
	}
	s.Objects = append(s.Objects, set)
}

// addClass adds the StorageClass that stands for one of local-path-provisioner.
func (s *stand) addClass(theirs *storagev1.StorageClass, c *localPathConfig, names map[string]string) {
	m := c.pathMap
	if len(c.StorageClassConfigs) > 0 {
		var ok bool
		if m, ok = c.StorageClassConfigs[theirs.Name]; !ok || m.SharedFileSystemPath != "" {
			s.note("StorageClass %s: config.json has no nodePathMap for it; none is made.", theirs.Name)
			return
		}
	}
	paths := m.paths()
	if only := theirs.Parameters["nodePath"]; only != "" {
		paths = slices.DeleteFunc(paths, func(p string) bool { return p != path.Clean(only) })
	}
	var pools []string
	for _, p := range paths {
		if slices.ContainsFunc(s.Objects, func(o client.Object) bool { return o.GetName() == names[p] }) {
			pools = append(pools, names[p])
		}
	}
	if len(pools) == 0 {
		s.note("StorageClass %s: no path is left for it; none is made.", theirs.Name)
		return
	}
	expand, delayed := true, storagev1.VolumeBindingWaitForFirstConsumer
	policy := cmp.Or(valueOf(theirs.ReclaimPolicy), corev1.PersistentVolumeReclaimDelete)
	s.Objects = append(s.Objects, &storagev1.StorageClass{
		TypeMeta:      metav1.TypeMeta{APIVersion: storagev1.SchemeGroupVersion.String(), Kind: "StorageClass"},
		ObjectMeta:    metav1.ObjectMeta{Name: className(theirs.Name)},
		Provisioner:   berth.DriverName,
		Parameters:    map[string]string{"mode": string(berth.ModeHostpath), "pool": strings.Join(pools, ",")},
		ReclaimPolicy: &policy, AllowVolumeExpansion: &expand, VolumeBindingMode: &delayed,
	})
	if pattern := theirs.Parameters["pathPattern"]; pattern != "" {
		s.note("StorageClass %s: its pathPattern %q is not taken over; the parameter pathTemplate says where new volumes lie.", theirs.Name, pattern)
	}
	if theirs.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
		s.note("StorageClass %s is the default one, and %s is not: claims that name no class still go to local-path-provisioner.", theirs.Name, className(theirs.Name))
	}
	if len(theirs.AllowedTopologies) > 0 || len(theirs.MountOptions) > 0 {
		s.note("StorageClass %s: its allowedTopologies and mountOptions are not taken over.", theirs.Name)
	}
}

// className is what the StorageClass is called that stands for one of local-path-provisioner.
func className(theirs string) string { return "berth-" + theirs }

func valueOf[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}
