// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const leftDisk = "serial S2, 1610612736 bytes"

func TestPurgeOfADisk(t *testing.T) {
	t.Parallel()
	now := metav1.Now()
	request := func(confirm string) []berth.PurgeRequest {
		return []berth.PurgeRequest{{UID: leftUID, Kind: berth.LeftOverVolume, Identity: leftDisk, Confirm: confirm}}
	}
	of := func(state berth.PurgeState, token string) []berth.PurgeStatus {
		return []berth.PurgeStatus{{UID: leftUID, State: state, Token: token, Since: &now, Holds: "ext4 of orders", Message: "as it is"}}
	}
	older := berth.PurgeRequest{UID: "00000000-0000-4000-8000-000000000009", Kind: berth.LeftOverVolume, Identity: leftDisk, Confirm: "y"}
	for name, tc := range map[string]struct {
		asked  []berth.PurgeRequest
		before []berth.PurgeStatus
		// answers is what the agent says after the write.
		answers []berth.PurgeStatus
		change  func(*cluster, *berth.BlockDevice)
		args    string
		code    int
		// want is spec.purge afterwards; nil when it is as it was.
		want []berth.PurgeRequest
		says []string
	}{
		"planned":    {args: "node1/bd-2", says: []string{"Volume on the whole disk bd-2 of node node1", "Volume    pvc-raw", "Place     /dev/sdc", "Identity  " + leftDisk, "Nothing was changed.", "purge node1/bd-2 --yes"}},
		"by its UID": {args: "node1/" + leftUID, says: []string{"the whole disk bd-2"}},
		"asked for": {
			args: "node1/bd-2 --yes", answers: of(berth.PurgeQuarantined, "tok"), want: request(""),
			says: []string{"The agent says: Quarantined since", "It holds: ext4 of orders", "purge node1/bd-2 --confirm=tok --yes"},
		},
		"not answered":         {args: "node1/bd-2 --yes", code: exitTrouble, want: request(""), says: []string{"has not answered yet"}},
		"refused by the agent": {args: "node1/bd-2 --yes", answers: of(berth.PurgeRefused, ""), code: exitTrouble, want: request("")},
		"shown":                {asked: request(""), before: of(berth.PurgeQuarantined, "tok"), args: "node1/bd-2", says: []string{"--confirm=tok --yes"}},
		"after another one was done": {
			asked: []berth.PurgeRequest{older}, before: []berth.PurgeStatus{{UID: older.UID, State: berth.PurgePurged}}, args: "node1/bd-2 --yes", code: exitTrouble, want: request(""),
		},
		"while another one is asked for": {asked: []berth.PurgeRequest{older}, args: "node1/bd-2 --yes", code: exitUsage, says: []string{"withdraw that first"}},
		"the other one is withdrawn":     {asked: []berth.PurgeRequest{older}, args: "node1/bd-2 --withdraw --yes", want: []berth.PurgeRequest{}, says: []string{"withdrawn"}},
		"confirmed": {
			asked: request(""), before: of(berth.PurgeQuarantined, "tok"), args: "node1/bd-2 --confirm=tok --yes", answers: of(berth.PurgePurged, ""), want: request("tok"), says: []string{"Purged"},
		},
		"confirmed by another token":  {asked: request(""), before: of(berth.PurgeQuarantined, "tok"), args: "node1/bd-2 --confirm=tik --yes", code: exitTrouble, says: []string{"not the token"}},
		"confirmed what nobody asked": {args: "node1/bd-2 --confirm=tok --yes", code: exitTrouble, says: []string{"nobody has asked"}},
		"withdrawn":                   {asked: request(""), before: of(berth.PurgeQuarantined, "tok"), args: "node1/bd-2 --withdraw --yes", want: []berth.PurgeRequest{}, says: []string{"withdrawn"}},
		"withdrawn too late":          {asked: request("tok"), before: of(berth.PurgePurging, ""), args: "node1/bd-2 --withdraw --yes", code: exitTrouble, says: []string{"cannot be taken back"}},
		"shown while it goes on": {
			asked: request("tok"), before: of(berth.PurgePurging, ""), change: func(_ *cluster, d *berth.BlockDevice) { d.Status.ClaimState = berth.ClaimStateReleased },
			args: "node1/bd-2", says: []string{"Purging"},
		},
		"shown when it is done": {asked: request("tok"), before: of(berth.PurgePurged, ""), change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.ClaimRef = nil }, args: "node1/bd-2", says: []string{"Purged"}},
		"a claim waits for it":  {change: func(c *cluster, _ *berth.BlockDevice) { c.add(claimOf("lost", "fast", "pvc-raw")) }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"claim default/lost is bound to"}},
		"a LocalVolume is there": {
			change: func(c *cluster, _ *berth.BlockDevice) {
				c.add(&berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-raw", UID: "another"}, Spec: berth.LocalVolumeSpec{NodeName: "node1"}})
			}, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"there is a LocalVolume pvc-raw"},
		},
		"of a pool":      {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.ClaimRef.Kind = "Pool" }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"part of Pool pvc-raw"}},
		"of nobody":      {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.ClaimRef = nil }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"no volume holds it"}},
		"released":       {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.ClaimState = berth.ClaimStateReleased }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"was released already"}},
		"away":           {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.State = berth.DeviceInactive }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"when it is back"}},
		"reserved":       {change: func(_ *cluster, d *berth.BlockDevice) { d.Spec.Reserved = "for tests" }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"reserved: for tests"}},
		"unknown":        {change: func(_ *cluster, d *berth.BlockDevice) { d.Status.Identity = nil }, args: "node1/bd-2 --yes", code: exitTrouble, says: []string{"cannot be named in full"}},
		"another node":   {args: "node2/bd-2 --yes", code: exitUsage, says: []string{"node node2 has no BlockDevice bd-2"}},
		"no such disk":   {args: "node1/bd-9", code: exitUsage, says: []string{"has no BlockDevice bd-9"}},
		"half of a name": {args: "node1/", code: exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			d := get[*berth.BlockDevice](c, "BlockDevice//bd-2")
			d.Spec.ClaimRef = &berth.BlockDeviceClaimRef{Kind: "LocalVolume", Name: "pvc-raw", UID: types.UID(leftUID)}
			d.Spec.Purge, d.Status.Purges = tc.asked, tc.before
			d.Status.ClaimState, d.Status.State = berth.ClaimStateClaimed, berth.DeviceActive
			d.Status.Identity = &berth.DeviceIdentity{Scheme: "serial", Value: "S2"}
			if tc.change != nil {
				tc.change(c, d)
			}
			api := interceptor.NewClient(c.build(t), interceptor.Funcs{
				Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
					if err := c.Patch(ctx, o, p, opts...); err != nil {
						return err
					}
					d := o.DeepCopyObject().(*berth.BlockDevice) //nolint:forcetypeassert // nothing else is written
					d.Status.Purges = tc.answers
					return c.Update(ctx, d)
				},
			})
			var out, errs strings.Builder
			args := append([]string{"orphans", "purge", "--wait=0"}, strings.Fields(tc.args)...)
			code := Run(t.Context(), args, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
			if err := api.Get(t.Context(), client.ObjectKey{Name: "bd-2"}, d); err != nil {
				t.Fatal(err)
			}
			want := tc.want
			if want == nil {
				want = tc.asked
			}
			if code != tc.code || !slices.Equal(d.Spec.Purge, want) {
				t.Errorf("exit code %d, want %d; asked is %+v, want %+v\n%s%s", code, tc.code, d.Spec.Purge, want, out.String(), errs.String())
			}
			for _, part := range tc.says {
				if !strings.Contains(out.String()+errs.String(), part) {
					t.Errorf("it does not say %q:\n%s%s", part, out.String(), errs.String())
				}
			}
		})
	}
}

func TestOrphansListTellsOfPurgesOfDisks(t *testing.T) {
	t.Parallel()
	c := newCluster()
	d := get[*berth.BlockDevice](c, "BlockDevice//bd-2")
	d.Spec.ClaimRef = &berth.BlockDeviceClaimRef{Kind: "LocalVolume", Name: "pvc-raw", UID: types.UID(leftUID)}
	if _, out, _ := c.run(t, "orphans", "list", "-o", "wide"); !strings.Contains(out, "kubectl berth orphans purge node1/bd-2") || !strings.Contains(out, "kubectl berth orphans adopt node1/bd-2") {
		t.Errorf("it does not say how it is used again, and how it is removed:\n%s", out)
	}
	d.Status.Purges = []berth.PurgeStatus{{UID: leftUID, State: berth.PurgeQuarantined, Message: "nobody gets it"}}
	if _, out, _ := c.run(t, "orphans", "list", "-o", "wide"); !strings.Contains(out, "to be purged, Quarantined: nobody gets it") {
		t.Errorf("it does not say how far that is:\n%s", out)
	}
}
