// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// list reads all objects of a kind.
func (p *plugin) list(ctx context.Context, list client.ObjectList, what string, options ...client.ListOption) error {
	if err := p.client.List(ctx, list, options...); err != nil {
		return fmt.Errorf("list %s: %w", what, err)
	}
	return nil
}

// diskRow is a disk as it is shown.
type diskRow struct {
	Node   string `json:"node"`
	Name   string `json:"name"`
	Path   string `json:"path"`
	Bytes  int64  `json:"sizeBytes"`
	Model  string `json:"model,omitempty"`
	Serial string `json:"serial,omitempty"`
	Claim  string `json:"claimState"`
	Owner  string `json:"owner,omitempty"`
	Usable bool   `json:"usable"`
	Reason string `json:"reason"`
	// Message is the reason in words.
	Message string `json:"message"`
}

func (p *plugin) diskRows(ctx context.Context) ([]diskRow, error) {
	devices := &berth.BlockDeviceList{}
	if err := p.list(ctx, devices, "BlockDevices"); err != nil {
		return nil, err
	}
	rows := make([]diskRow, 0, len(devices.Items))
	for i := range devices.Items {
		d := &devices.Items[i]
		row := diskRow{
			Node: d.Spec.NodeName, Name: d.Name, Path: d.Status.Path, Bytes: d.Status.SizeBytes, Model: d.Status.Model, Serial: d.Status.Serial,
			Claim: string(d.Status.ClaimState), Owner: ownerOf(d),
		}
		if c := meta.FindStatusCondition(d.Status.Conditions, berth.BlockDeviceUsable); c != nil {
			row.Usable, row.Reason, row.Message = c.Status == metav1.ConditionTrue, c.Reason, c.Message
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b diskRow) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Name, b.Name))
	})
	return rows, nil
}

func ownerOf(d *berth.BlockDevice) string {
	if ref := d.Spec.ClaimRef; ref != nil {
		return ref.Kind + "/" + ref.Name
	}
	return ""
}

func (p *plugin) disks(ctx context.Context, _ []string) (bool, error) {
	rows, err := p.diskRows(ctx)
	if err != nil {
		return false, err
	}
	return false, printList(p, []column{
		{title: "NODE"},
		{title: "PATH"},
		{title: "SIZE"},
		{title: "MODEL", wide: true},
		{title: "SERIAL"},
		{title: "CLAIM"},
		{title: "OWNER"},
		{title: "USABLE"},
		{title: "WHY"},
		{title: "NAME", wide: true},
	}, rows, func(d diskRow) []string {
		usable := "no"
		if d.Usable {
			usable = "yes"
		}
		return []string{d.Node, orNone(d.Path), bytes(d.Bytes), orNone(d.Model), orNone(d.Serial), orNone(d.Claim), orNone(d.Owner), usable, p.short(d.Message), d.Name}
	})
}

// short keeps a message on the line of a table; -o wide shows all of it.
func (p *plugin) short(message string) string {
	const most = 72
	message = strings.Join(strings.Fields(message), " ")
	if p.o.Output != "wide" && len(message) > most {
		return strings.ToValidUTF8(message[:most-3], "") + "..."
	}
	return orNone(message)
}

// poolRow is a pool as it is shown.
type poolRow struct {
	Node      string `json:"node"`
	Name      string `json:"name"`
	Type      string `json:"type"`
	State     string `json:"state"`
	Volumes   int32  `json:"volumes"`
	Allocated int64  `json:"allocatedBytes"`
	Free      int64  `json:"freeBytes"`
	Capacity  int64  `json:"capacityBytes"`
	Ready     bool   `json:"ready"`
	Reason    string `json:"reason"`
	Message   string `json:"message"`
}

func (p *plugin) poolRows(ctx context.Context) ([]poolRow, error) {
	pools := &berth.PoolList{}
	if err := p.list(ctx, pools, "Pools"); err != nil {
		return nil, err
	}
	rows := make([]poolRow, 0, len(pools.Items))
	for i := range pools.Items {
		pool := &pools.Items[i]
		s := pool.Status
		row := poolRow{
			Node: pool.Spec.NodeName, Name: pool.Name, Type: s.Type, State: string(s.State), Volumes: s.VolumeCount,
		}
		if s.Allocated != nil && s.Free != nil && s.Capacity != nil {
			row.Allocated, row.Free, row.Capacity = s.Allocated.Value(), s.Free.Value(), s.Capacity.Value()
		}
		if c := meta.FindStatusCondition(s.Conditions, berth.PoolReady); c != nil {
			row.Ready, row.Reason, row.Message = c.Status == metav1.ConditionTrue, c.Reason, c.Message
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b poolRow) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Name, b.Name)) })
	return rows, nil
}

func (p *plugin) pools(ctx context.Context, _ []string) (bool, error) {
	rows, err := p.poolRows(ctx)
	if err != nil {
		return false, err
	}
	return false, printList(p, []column{
		{title: "NODE"}, {title: "POOL"}, {title: "TYPE"}, {title: "STATE"}, {title: "VOLUMES"}, {title: "PROMISED"}, {title: "FREE"}, {title: "CAPACITY"}, {title: "WHY"},
	}, rows, func(r poolRow) []string {
		promised := "-"
		if r.Capacity > 0 {
			promised = fmt.Sprintf("%d%%", int64(float64(r.Allocated)/float64(r.Capacity)*100)) //nolint:mnd // percent
		}
		return []string{
			r.Node, r.Name, orNone(r.Type), orNone(r.State), fmt.Sprint(r.Volumes), promised, bytes(r.Free), bytes(r.Capacity), p.short(r.Message),
		}
	})
}

// volumeRow is a volume as it is shown.
type volumeRow struct {
	Name    string   `json:"name"`
	Claim   string   `json:"claim,omitempty"`
	Node    string   `json:"node"`
	Mode    string   `json:"mode"`
	Pool    string   `json:"pool,omitempty"`
	Bytes   int64    `json:"sizeBytes"`
	Pods    []string `json:"pods,omitempty"`
	Ready   bool     `json:"ready"`
	Reason  string   `json:"reason"`
	Message string   `json:"message"`
	// Unwell: it is ready, and Reason and Message say what is wrong with it nevertheless.
	Unwell bool `json:"unwell,omitempty"`
	// Deleting: its deletion was asked for.
	Deleting bool `json:"deleting,omitempty"`
}

func (p *plugin) volumeRows(ctx context.Context) ([]volumeRow, error) {
	volumes, pods := &berth.LocalVolumeList{}, &corev1.PodList{}
	if err := p.list(ctx, volumes, "LocalVolumes"); err != nil {
		return nil, err
	}
	if err := p.list(ctx, pods, "pods"); err != nil {
		return nil, err
	}
	users := podsByClaim(pods)
	rows := make([]volumeRow, 0, len(volumes.Items))
	for i := range volumes.Items {
		lv := &volumes.Items[i]
		row := volumeRow{
			Name: lv.Name, Node: lv.Spec.NodeName, Mode: string(lv.Spec.Mode), Pool: lv.Spec.Pool, Bytes: lv.Spec.SizeBytes, Deleting: lv.DeletionTimestamp != nil,
		}
		if ref := lv.Spec.ClaimRef; ref != nil {
			row.Claim = ref.Namespace + "/" + ref.Name
			row.Pods = users[row.Claim]
		}
		if c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady); c != nil {
			row.Ready, row.Reason, row.Message = c.Status == metav1.ConditionTrue, c.Reason, c.Message
		}
		if c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeHealthy); row.Ready && c != nil && c.Status == metav1.ConditionFalse {
			row.Unwell, row.Reason, row.Message = true, c.Reason, c.Message
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b volumeRow) int { return cmp.Or(cmp.Compare(a.Claim, b.Claim), cmp.Compare(a.Name, b.Name)) })
	return rows, nil
}

// podsByClaim returns the names of the pods that use each claim and have not ended, by
// namespace/name of the claim.
func podsByClaim(pods *corev1.PodList) map[string][]string {
	users := map[string][]string{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, v := range pod.Spec.Volumes {
			name := ""
			switch {
			case v.PersistentVolumeClaim != nil:
				name = v.PersistentVolumeClaim.ClaimName
			case v.Ephemeral != nil:
				name = pod.Name + "-" + v.Name
			}
			if name != "" {
				key := pod.Namespace + "/" + name
				users[key] = append(users[key], pod.Name)
			}
		}
	}
	return users
}

func (p *plugin) volumes(ctx context.Context, _ []string) (bool, error) {
	rows, err := p.volumeRows(ctx)
	if err != nil {
		return false, err
	}
	return false, printList(p, []column{
		{title: "CLAIM"}, {title: "NODE"}, {title: "MODE"}, {title: "POOL"}, {title: "SIZE"}, {title: "PODS"}, {title: "STATE"}, {title: "WHY", wide: true}, {title: "NAME", wide: true},
	}, rows, func(v volumeRow) []string {
		state := orNone(v.Reason)
		if v.Deleting {
			state = "Deleting"
		}
		return []string{orNone(v.Claim), v.Node, v.Mode, orNone(v.Pool), bytes(v.Bytes), orNone(strings.Join(v.Pods, ",")), state, p.short(v.Message), v.Name}
	})
}
