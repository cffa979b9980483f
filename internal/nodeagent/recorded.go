// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"slices"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/luks"
)

// holder is the volume that has its data on a disk by the ledger. Of two, which there cannot
// be, neither is believed; but of a left-over and the volume that has got its disk, that one is.
// Before the ledger says that it has, each of the two may be who has claimed the disk.
func (n *Agent) holder(diskName, claimedBy string) (device.Owner, bool) {
	var holders []ledger.Entry
	all := n.Ledger.All()
	for _, e := range all {
		has := e.State == ledger.Ready || e.State == ledger.Carved && e.LeftOver != nil
		if has && e.MachineID == n.MachineID && e.Record != nil && e.Record.Device != nil && e.Record.Device.Name == diskName {
			holders = append(holders, e)
		}
	}
	heirOf := func(left string) func(ledger.Entry) bool {
		return func(e ledger.Entry) bool { return e.LeftOver != nil && e.LeftOver.UID == left }
	}
	switch len(holders) {
	case 1:
	case 2: //nolint:mnd // a left-over and its heir
		if heirOf(holders[0].UID)(holders[1]) {
			holders[0] = holders[1]
		} else if !heirOf(holders[1].UID)(holders[0]) {
			return device.Owner{}, false
		}
	default:
		return device.Owner{}, false
	}
	holder := holders[0]
	if holder.UID != claimedBy {
		heir := heirOf(holder.UID)
		if i := slices.IndexFunc(all, func(e ledger.Entry) bool { return e.UID == claimedBy && e.MachineID == n.MachineID && heir(e) }); i >= 0 {
			holder = all[i]
		}
	}
	return device.Owner{Kind: device.OwnerVolume, Name: holder.Name, UID: holder.UID}, true
}

// contentOf returns what a volume has on its disk, by the ledger. Before it was handed out, or
// after its keys were destroyed, there may also be nothing.
func (n *Agent) contentOf(uid string) (device.Content, bool) {
	e, err := n.Ledger.Get(uid)
	switch {
	case err != nil || e.MachineID != n.MachineID:
		return device.Content{}, false
	case e.Encryption != nil && e.Encryption.UUID != "":
		return device.Content{Type: luks.ContentType, UUID: e.Encryption.UUID}, true
	case e.Encryption == nil && e.FSType != "" && e.FSUUID != "":
		return device.Content{Type: e.FSType, UUID: e.FSUUID}, true
	}
	return device.Content{}, false
}
