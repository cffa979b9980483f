// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// elsewhereRetry is when a disk is looked for again on other nodes that one of them
// shows too: no event tells when it is gone there.
const elsewhereRetry = time.Minute

// moveRetries are when a disk is looked for again that another node still calls its
// own by a serial number: one that was moved comes here before that node has said that
// it is gone.
var moveRetries = []time.Duration{2 * time.Second, 10 * time.Second, time.Minute}

// sightings are the BlockDevices of other nodes that have one identity.
type sightings struct {
	at      time.Time
	diskSeq uint64
	// active are shown by their nodes now, as far as these have said.
	active []*v1alpha1.BlockDevice
	// gone is the one that was there last, nil if there is none.
	gone *v1alpha1.BlockDevice
	// namesake is true when another node shows a disk of that serial number, and asked
	// is how often it was asked for since the disk came.
	namesake bool
	asked    int
}

// retry is how long after the last time to ask again, 0 for never.
func (s *sightings) retry() time.Duration {
	switch {
	case s == nil:
		return 0
	case len(s.active) > 0:
		return elsewhereRetry
	case s.namesake && s.gone == nil && s.asked <= len(moveRetries):
		return moveRetries[s.asked-1]
	}
	return 0
}

// identityLabel is by what a disk is found on other nodes: a digest, for identities
// are longer than labels may be.
func identityLabel(i block.Identity) string {
	sum := sha256.Sum256([]byte(i.Scheme + ":" + i.Value))
	return hex.EncodeToString(sum[:16])
}

// lookElsewhere asks the API server for the same disk on other nodes.
func (inv *Inventory) lookElsewhere(ctx context.Context, name string, f *facts) (*sightings, error) {
	if f.identity.Weak || len(f.devices) != 1 {
		return &sightings{}, nil
	}
	var list v1alpha1.BlockDeviceList
	err := inv.opts.Reader.List(ctx, &list, client.MatchingLabels{v1alpha1.LabelIdentity: identityLabel(f.identity)})
	if err != nil {
		return nil, fmt.Errorf("look for the disk %s on other nodes: %w", f.identity, err)
	}
	s := &sightings{at: time.Now(), diskSeq: f.devices[0].DiskSeq}
	for i := range list.Items {
		bd := &list.Items[i]
		switch {
		case bd.Spec.NodeName == inv.opts.NodeName:
		case bd.Status.State == v1alpha1.DeviceInactive:
			if s.gone == nil || goneSince(bd).After(goneSince(s.gone)) {
				s.gone = bd
			}
		case f.identity.Worldwide():
			s.active = append(s.active, bd)
		default:
			s.namesake = true
		}
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	s.asked = 1
	if before := inv.disk(name).elsewhere; before != nil && before.diskSeq == s.diskSeq {
		s.asked += before.asked
	}
	inv.disk(name).elsewhere = s
	return s, nil
}

func goneSince(bd *v1alpha1.BlockDevice) time.Time {
	if c := condition(&bd.Status); c != nil {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// addElsewhere adds what other nodes have said of the disk. The API server is asked
// when the disk comes, and again while it is in two places.
func (inv *Inventory) addElsewhere(ctx context.Context, name string, object *v1alpha1.BlockDevice, f *facts) error {
	if len(f.devices) != 1 || f.identity.Weak || object != nil && !inv.isNews(name, object) {
		return nil
	}
	inv.mu.Lock()
	s := inv.disk(name).elsewhere
	inv.mu.Unlock()
	wait := s.retry()
	if s == nil || s.diskSeq != f.devices[0].DiskSeq || wait > 0 && time.Since(s.at) >= wait {
		var err error
		if s, err = inv.lookElsewhere(ctx, name, f); err != nil {
			return err
		}
	}
	f.elsewhere = s
	return nil
}

// isNews reports whether a disk that has an object may have come from elsewhere, or
// was in two places when it was last judged.
func (inv *Inventory) isNews(name string, object *v1alpha1.BlockDevice) bool {
	c := condition(&object.Status)
	if object.Status.State != v1alpha1.DeviceActive || c != nil && c.Reason == v1alpha1.ReasonConflicted {
		return true
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	s := inv.disk(name).elsewhere
	return s.retry() > 0
}

// twoNodes refuses a disk that another node shows as well: two nodes that write to
// one disk lose what is on it.
func (f *facts) twoNodes(*block.Device) (verdict, bool) {
	if f.elsewhere == nil || len(f.elsewhere.active) == 0 {
		return verdict{}, false
	}
	var places []string
	for _, bd := range f.elsewhere.active {
		places = append(places, fmt.Sprintf("%s (BlockDevice %s)", bd.Spec.NodeName, bd.Name))
	}
	slices.Sort(places)
	return no(v1alpha1.ReasonConflicted, "%s is also seen by node %s: a disk that two nodes see is not used; delete the other BlockDevice if that node is gone for good",
		f.identity, strings.Join(places, ", ")), true
}

// lastSeen is where the disk was before it came here, as was found out now or before;
// nil if nobody knows.
func (f *facts) lastSeen() *v1alpha1.BlockDeviceSighting {
	if f.elsewhere == nil || f.elsewhere.gone == nil {
		return f.status.LastSeen
	}
	bd := f.elsewhere.gone
	return &v1alpha1.BlockDeviceSighting{NodeName: bd.Spec.NodeName, Name: bd.Name, ClaimRef: bd.Spec.ClaimRef.DeepCopy()}
}

// words for the end of a message: where the disk was.
func (f *facts) whence() string {
	seen := f.lastSeen()
	switch {
	case seen == nil:
		return ""
	case seen.ClaimRef != nil:
		return fmt.Sprintf("; last seen on node %s, where %s %s holds it", seen.NodeName, seen.ClaimRef.Kind, seen.ClaimRef.Name)
	}
	return "; last seen on node " + seen.NodeName
}

// requireHere refuses a claim on a disk that another node shows as well.
func (inv *Inventory) requireHere(ctx context.Context, name string, f *facts) error {
	if !f.identity.Worldwide() {
		return nil
	}
	s, err := inv.lookElsewhere(ctx, name, f)
	if err != nil {
		return err
	}
	f.elsewhere = s
	if v, refused := f.twoNodes(nil); refused {
		return fmt.Errorf("%s: %w", v.message, errors.Join(volume.ErrInvalid, volume.ErrIdentity))
	}
	return nil
}
