// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// whyDisk answers for a disk that is named by its BlockDevice, its serial number, its path, or
// its node and its path (node1:/dev/sdb).
func (p *plugin) whyDisk(ctx context.Context, name string) (*answer, error) {
	devices := &berth.BlockDeviceList{}
	if err := p.list(ctx, devices, "BlockDevices"); err != nil {
		return nil, err
	}
	var found []*berth.BlockDevice
	for i := range devices.Items {
		if isCalled(&devices.Items[i], name) {
			found = append(found, &devices.Items[i])
		}
	}
	a := &answer{About: "disk/" + name}
	switch len(found) {
	case 0:
		a.blame("No node shows a disk that is called %s. Name it by its BlockDevice, its serial number, or NODE:PATH; kubectl berth disks lists all.", name)
		return a, nil
	case 1:
	default:
		var names []string
		for _, d := range found {
			names = append(names, d.Spec.NodeName+":"+d.Status.Path)
		}
		a.blame("%d disks are called %s: %s. Name one by its node and path.", len(found), name, strings.Join(names, ", "))
		return a, nil
	}
	d := found[0]
	a.About = "disk/" + d.Name
	a.say("%s on node %s, %s%s.", orNone(d.Status.Path), d.Spec.NodeName, bytes(d.Status.SizeBytes), described(d))
	if ref := d.Spec.ClaimRef; ref != nil {
		a.say("It is used by %s %s.", ref.Kind, ref.Name)
	}
	usable := meta.FindStatusCondition(d.Status.Conditions, berth.BlockDeviceUsable)
	switch {
	case usable == nil:
		a.blame("Whether it can be used is not known yet: the node's agent has not looked at it.")
	case usable.Status == metav1.ConditionTrue:
		a.say("It can be used: %s", usable.Message)
	case d.Spec.ClaimRef != nil:
	default:
		a.blame("It cannot be used, %s: %s", usable.Reason, usable.Message)
	}
	if c := meta.FindStatusCondition(d.Status.Conditions, berth.BlockDeviceHealthy); c != nil && c.Status == metav1.ConditionFalse {
		a.blame("It is failing, %s: %s", c.Reason, c.Message)
	}
	if w := d.Status.Wipe; w != nil && d.Status.SizeBytes > 0 {
		a.say("It is being cleaned (wipe: %s), %d%% of it so far.", w.Policy, int64(float64(w.DoneBytes)/float64(d.Status.SizeBytes)*100)) //nolint:mnd // percent
	}
	return a, nil
}

func isCalled(d *berth.BlockDevice, name string) bool {
	switch name {
	case d.Name, d.Spec.NodeName + ":" + d.Status.Path:
		return true
	case d.Status.Serial, d.Status.Path, strings.TrimPrefix(d.Status.Path, "/dev/"):
		return name != ""
	}
	return false
}

func described(d *berth.BlockDevice) string {
	var words []string
	for _, word := range []string{d.Status.Vendor, d.Status.Model} {
		if word != "" {
			words = append(words, word)
		}
	}
	text := ""
	if len(words) > 0 {
		text = ", " + strings.Join(words, " ")
	}
	if d.Status.Serial != "" {
		text += fmt.Sprintf(", serial number %s", d.Status.Serial)
	}
	return text
}
