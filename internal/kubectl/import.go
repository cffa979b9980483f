// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// localPath is what can be imported from.
const localPath = "local-path"

// importFrom prints what stands for the configuration of local-path-provisioner; or says what
// is to be done to move its volumes, and with --yes does it. It is troubled when something
// cannot be moved, or was not.
func (p *plugin) importFrom(ctx context.Context, args []string) (bool, error) {
	if args[0] != localPath {
		return false, fmt.Errorf("%w: kubectl berth import local-path; there is nothing to import from %q", errUsage, args[0])
	}
	named := args[1:]
	switch {
	case p.o.All && len(named) > 0:
		return false, fmt.Errorf("%w: name a claim, or give --all", errUsage)
	case p.o.All || len(named) > 0:
		return p.importVolumes(ctx, named)
	case p.o.Yes || p.o.Pool != "" || p.o.StorageClass != "":
		return false, fmt.Errorf("%w: name a claim or pv/NAME, or give --all", errUsage)
	}
	return p.importConfig(ctx)
}

// importConfig prints the PoolSets and StorageClasses.
func (p *plugin) importConfig(ctx context.Context) (bool, error) {
	config, where, err := p.localPathConfig(ctx)
	if err != nil {
		return false, err
	}
	classes, nodes := &storagev1.StorageClassList{}, &corev1.NodeList{}
	if err := p.list(ctx, classes, "StorageClasses"); err != nil {
		return false, err
	}
	if err := p.list(ctx, nodes, "nodes"); err != nil {
		return false, err
	}
	theirs := slices.DeleteFunc(classes.Items, func(c storagev1.StorageClass) bool { return c.Provisioner != p.o.Provisioner })
	s, err := standFor(config, theirs, nodes.Items)
	if errors.Is(err, errShared) {
		fmt.Fprintf(p.errs, "ConfigMap %s: %v.\n", where, err)
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if p.o.Output == "json" {
		return false, p.json(s)
	}
	fmt.Fprintf(p.out, "# What stands for config.json of the ConfigMap %s.\n", where)
	for _, note := range s.Notes {
		fmt.Fprintf(p.out, "# Note: %s\n", note)
	}
	for _, command := range s.Commands {
		fmt.Fprintf(p.out, "# Before this is applied: %s\n", command)
	}
	for _, o := range s.Objects {
		text, err := manifest(o)
		if err != nil {
			return false, err
		}
		fmt.Fprintf(p.out, "---\n%s", text)
	}
	return false, nil
}

// manifest writes an object as YAML, without what the API server fills in.
func manifest(o client.Object) ([]byte, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", o.GetName(), err)
	}
	delete(fields, "status")
	if meta, ok := fields["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	return yaml.Marshal(fields)
}

// localPathConfig finds config.json: where --config says, or where local-path-provisioner's own
// manifests and k3s have it.
func (p *plugin) localPathConfig(ctx context.Context) (config *localPathConfig, where string, err error) {
	keys := []client.ObjectKey{{Namespace: "local-path-storage", Name: "local-path-config"}, {Namespace: "kube-system", Name: "local-path-config"}}
	if p.o.Config != "" {
		namespace, name, ok := strings.Cut(p.o.Config, "/")
		if !ok || namespace == "" || name == "" {
			return nil, "", fmt.Errorf("%w: --config is %q; it must be NAMESPACE/NAME of a ConfigMap", errUsage, p.o.Config)
		}
		keys = []client.ObjectKey{{Namespace: namespace, Name: name}}
	}
	for _, key := range keys {
		found := &corev1.ConfigMap{}
		err := p.client.Get(ctx, key, found)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("read ConfigMap %s: %w", key, err)
		}
		data, ok := found.Data["config.json"]
		if !ok {
			return nil, "", fmt.Errorf("ConfigMap %s has no key config.json: name another one by --config", key)
		}
		config, err := parseLocalPath([]byte(data))
		if err != nil {
			return nil, "", fmt.Errorf("ConfigMap %s: %w", key, err)
		}
		return config, key.String(), nil
	}
	return nil, "", fmt.Errorf("there is no ConfigMap %s: say by --config=NAMESPACE/NAME where local-path-provisioner has its config.json", keys[0])
}

// importVolumes says what is to be done to move volumes, and does it.
func (p *plugin) importVolumes(ctx context.Context, named []string) (bool, error) {
	moves, err := p.planMoves(ctx, named)
	if err != nil {
		return false, err
	}
	if p.o.Yes {
		for _, m := range moves {
			if len(m.Refusals) > 0 || m.State == stateMoved {
				continue
			}
			if err := p.move(ctx, m); err != nil {
				return false, err
			}
		}
	}
	troubled := slices.ContainsFunc(moves, func(m *move) bool { return len(m.Refusals) > 0 })
	if p.o.Output == "json" {
		return troubled, p.json(moves)
	}
	return troubled, p.printMoves(moves)
}

func (p *plugin) printMoves(moves []*move) error {
	if len(moves) == 0 {
		fmt.Fprintf(p.out, "There is no PersistentVolume of %s.\n", p.o.Provisioner)
		return nil
	}
	if err := printList(p, []column{
		{title: "CLAIM"}, {title: "NODE"}, {title: "SIZE"}, {title: "POOL"}, {title: "STATE"}, {title: "WHY"}, {title: "PERSISTENTVOLUME", wide: true}, {title: "DIRECTORY", wide: true}, {title: "CLASS", wide: true},
	}, moves, func(m *move) []string {
		why := m.Message
		if len(m.Refusals) > 0 {
			why = strings.Join(m.Refusals, "; ")
		}
		return []string{orNone(m.Claim), orNone(m.Node), bytes(m.Bytes), orNone(m.Pool), m.State, p.short(why), m.PersistentVolume, orNone(m.Directory), orNone(m.StorageClass)}
	}); err != nil {
		return err
	}
	left := false
	for _, m := range moves {
		if len(moves) == 1 || len(m.Refusals) > 0 {
			for _, refusal := range m.Refusals {
				fmt.Fprintf(p.out, "\n%s: %s\n", m.PersistentVolume, refusal)
			}
		}
		if len(m.Steps) > 0 && len(m.Refusals) == 0 && !p.o.Yes {
			left = true
			fmt.Fprintf(p.out, "\n%s\n", m.PersistentVolume)
			for i, step := range m.Steps {
				fmt.Fprintf(p.out, "  %d. %s\n", i+1, step)
			}
		}
		if len(m.Back) > 0 && (p.o.Yes || len(moves) == 1) {
			fmt.Fprintf(p.out, "\nTo go back with %s, when no pod uses the claim:\n", m.PersistentVolume)
			for _, command := range m.Back {
				fmt.Fprintf(p.out, "  %s\n", command)
			}
		}
		if m.State == stateMoved && (p.o.Yes || len(moves) == 1) {
			fmt.Fprintf(p.out, "\nWhen all is well, without a way back from then on:\n  kubectl delete pv %s\n", m.PersistentVolume)
		}
	}
	if left {
		fmt.Fprintf(p.out, "\nNothing was changed. With --yes it is done.\n")
	}
	return nil
}
