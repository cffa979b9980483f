// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const leftUID = "00000000-0000-4000-8000-000000000003"

// leftCluster has something left over, and perhaps a request to purge it, with its answer.
func leftCluster(requests []berth.PurgeRequest, answers ...berth.PurgeStatus) *cluster {
	c := newCluster()
	pool := get[*berth.Pool](c, "Pool//fast-node1")
	pool.Status.LeftOvers = []berth.LeftOver{
		{Kind: berth.LeftOverVolume, UID: leftUID, Name: "pvc-3", Location: "berth-fast/u3", SizeBytes: 3 << 30, Identity: "vg/lv", Claim: "shop/orders"},
		{Kind: berth.LeftOverSnapshot, UID: "00000000-0000-4000-8000-000000000004", Name: "snapshot-4", Of: "pvc-1 (u1)", Identity: "x"},
		{Kind: berth.LeftOverVolume, UID: "00000000-0000-4000-8000-000000000005", Name: "pvc-5"},
		{Kind: berth.LeftOverVolume, UID: "00000000-0000-4000-8000-000000000006", Name: "pvc-6", Identity: "x", InUse: "mounted at /mnt"},
		{Kind: berth.LeftOverVolume, UID: "00000000-0000-4000-8000-000000000007", Name: "twice", Identity: "x"},
		{Kind: berth.LeftOverVolume, UID: "00000000-0000-4000-8000-000000000008", Name: "twice", Identity: "y"},
		{Kind: berth.LeftOverDirectory, Location: "/srv/berth/volumes/x"},
	}
	pool.Spec.Purge, pool.Status.Purges = requests, answers
	return c
}

func TestPurge(t *testing.T) {
	t.Parallel()
	now := metav1.Now()
	request := func(confirm string) []berth.PurgeRequest {
		return []berth.PurgeRequest{{UID: leftUID, Kind: berth.LeftOverVolume, Identity: "vg/lv", Confirm: confirm}}
	}
	of := func(state berth.PurgeState, token string) berth.PurgeStatus {
		return berth.PurgeStatus{UID: leftUID, State: state, Token: token, Since: &now, Holds: "ext4 of orders", Message: "as it is"}
	}
	quarantine := of(berth.PurgeQuarantined, "tok")
	other := berth.PurgeRequest{UID: "00000000-0000-4000-8000-000000000009", Kind: berth.LeftOverVolume, Identity: "x", Confirm: "y"}
	for name, tc := range map[string]struct {
		asked  []berth.PurgeRequest
		before []berth.PurgeStatus
		// answers is what the agent says after the write.
		answers []berth.PurgeStatus
		change  func(*cluster)
		args    string
		code    int
		// want is spec.purge afterwards; nil when it is as it was.
		want []berth.PurgeRequest
		says []string
	}{
		"planned":      {args: "node1/fast-node1/" + leftUID, says: []string{"Claim     shop/orders", "Identity  vg/lv", "Size      3Gi", "Nothing was changed.", "purge node1/fast-node1/" + leftUID + " --yes"}},
		"by its name":  {args: "node1/fast/pvc-3", says: []string{"UID       " + leftUID}},
		"by its place": {args: "node1/fast/berth-fast/u3", says: []string{"UID       " + leftUID}},
		"asked for": {
			args: "node1/fast/pvc-3 --yes", answers: []berth.PurgeStatus{quarantine}, want: request(""),
			says: []string{"The agent says: Quarantined since", "It holds: ext4 of orders", "--confirm=tok --yes"},
		},
		"not answered": {args: "node1/fast/pvc-3 --yes", code: exitTrouble, want: request(""), says: []string{"has not answered yet"}},
		"refused by the agent": {
			args: "node1/fast/pvc-3 --yes", answers: []berth.PurgeStatus{of(berth.PurgeRefused, "")}, code: exitTrouble, want: request(""), says: []string{"Refused"},
		},
		"asked for twice":    {asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --yes", says: []string{"--confirm=tok --yes"}},
		"shown":              {asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3", says: []string{"Quarantined since", "--confirm=tok --yes"}},
		"one more":           {asked: []berth.PurgeRequest{other}, args: "node1/fast/pvc-3 --yes", code: exitTrouble, want: append([]berth.PurgeRequest{other}, request("")...)},
		"after one was done": {asked: []berth.PurgeRequest{other}, before: []berth.PurgeStatus{{UID: other.UID, State: berth.PurgePurged}}, args: "node1/fast/pvc-3 --yes", code: exitTrouble, want: request("")},
		"another thing of that UID": {
			asked: []berth.PurgeRequest{{UID: leftUID, Kind: berth.LeftOverVolume, Identity: "vg/old", Confirm: "tok"}}, before: []berth.PurgeStatus{of(berth.PurgeRefused, "")},
			args: "node1/fast/pvc-3 --yes", code: exitUsage, says: []string{"withdraw that first"},
		},
		"confirmed": {
			asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok --yes", answers: []berth.PurgeStatus{of(berth.PurgePurged, "")}, want: request("tok"), says: []string{"Purged"},
		},
		"confirmed, and it takes long": {
			asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok --yes", answers: []berth.PurgeStatus{of(berth.PurgePurging, "")}, want: request("tok"), says: []string{"Purging"},
		},
		"confirmed, and an owner came": {
			asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok --yes", answers: []berth.PurgeStatus{of(berth.PurgeRefused, "")}, code: exitTrouble, want: request("tok"),
		},
		"confirmed, and the quarantine is another": {
			asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok --yes", answers: []berth.PurgeStatus{of(berth.PurgeQuarantined, "new")}, code: exitTrouble, want: request("tok"),
		},
		"confirmed without yes":        {asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok", says: []string{"--confirm=tok --yes"}},
		"confirmed by another token":   {asked: request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tik --yes", code: exitTrouble, says: []string{"not the token"}},
		"confirmed what nobody asked":  {args: "node1/fast/pvc-3 --confirm=tok --yes", code: exitTrouble, says: []string{"nobody has asked"}},
		"confirmed what is not listed": {asked: []berth.PurgeRequest{{UID: other.UID, Kind: berth.LeftOverVolume, Identity: "x"}}, before: []berth.PurgeStatus{{UID: other.UID, State: berth.PurgeQuarantined, Token: "tok"}}, args: "node1/fast/" + other.UID + " --confirm=tok --yes", answers: []berth.PurgeStatus{{UID: other.UID, State: berth.PurgePurged}}, want: []berth.PurgeRequest{{UID: other.UID, Kind: berth.LeftOverVolume, Identity: "x", Confirm: "tok"}}},
		"withdrawn":                    {asked: request("tok"), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --withdraw --yes", want: []berth.PurgeRequest{}, says: []string{"withdrawn"}},
		"withdrawn without yes":        {asked: request("tok"), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --withdraw", says: []string{"--withdraw --yes"}},
		"withdrawn what nobody asked":  {args: "node1/fast/pvc-3 --withdraw --yes", code: exitTrouble, says: []string{"nobody has asked"}},
		"withdrawn too late":           {asked: request("tok"), before: []berth.PurgeStatus{of(berth.PurgePurging, "")}, args: "node1/fast/pvc-3 --withdraw --yes", code: exitTrouble, says: []string{"cannot be taken back"}},
		"withdrawn and confirmed":      {asked: request("tok"), args: "node1/fast/pvc-3 --withdraw --confirm=tok --yes", code: exitUsage},
		"a claim waits for it": {
			change: func(c *cluster) { c.add(claimOf("lost", "fast", "pvc-3")) }, args: "node1/fast/pvc-3 --yes", code: exitTrouble, says: []string{"claim default/lost is bound to"},
		},
		"a claim has come": {
			change: func(c *cluster) { c.add(claimOf("lost", "fast", "pvc-3")) },
			asked:  request(""), before: []berth.PurgeStatus{quarantine}, args: "node1/fast/pvc-3 --confirm=tok --yes", code: exitTrouble, says: []string{"claim default/lost is bound to"},
		},
		"a snapshot": {
			args: "node1/fast/snapshot-4 --yes", code: exitTrouble, want: []berth.PurgeRequest{{UID: "00000000-0000-4000-8000-000000000004", Kind: berth.LeftOverSnapshot, Identity: "x"}},
			says: []string{"Snapshot in pool", "Snapshot  snapshot-4", "Of        pvc-1 (u1)", "has not answered yet"},
		},
		"of unknown identity": {args: "node1/fast/pvc-5 --yes", code: exitTrouble, says: []string{"cannot be named in full"}},
		"of nobody":           {args: "node1/fast//srv/berth/volumes/x --yes", code: exitTrouble, says: []string{"no mark of Berth"}},
		"in use":              {args: "node1/fast/pvc-6 --yes", code: exitTrouble, says: []string{"in use: mounted at /mnt"}},
		"two of a name":       {args: "node1/fast/twice --yes", code: exitUsage, says: []string{"by its UID"}},
		"nothing of a name":   {args: "node1/fast/pvc-9 --yes", code: exitUsage, says: []string{"no left-over pvc-9"}},
		"no such pool":        {args: "node2/fast/pvc-3 --yes", code: exitUsage, says: []string{"node node2 has no pool fast"}},
		"a name alone":        {args: "pvc-3", code: exitUsage, says: []string{"NODE/POOL/NAME"}},
		"no name":             {args: "", code: exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := leftCluster(tc.asked, tc.before...)
			if tc.change != nil {
				tc.change(c)
			}
			api := interceptor.NewClient(c.build(t), interceptor.Funcs{
				Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
					if err := c.Patch(ctx, o, p, opts...); err != nil {
						return err
					}
					pool := o.DeepCopyObject().(*berth.Pool) //nolint:forcetypeassert // nothing else is written
					pool.Status.Purges = tc.answers
					return c.Update(ctx, pool)
				},
			})
			var out, errs strings.Builder
			args := append([]string{"orphans", "purge", "--wait=0"}, strings.Fields(tc.args)...)
			code := Run(t.Context(), args, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
			pool := &berth.Pool{}
			if err := api.Get(t.Context(), client.ObjectKey{Name: "fast-node1"}, pool); err != nil {
				t.Fatal(err)
			}
			want := tc.want
			if want == nil {
				want = tc.asked
			}
			if code != tc.code || !slices.Equal(pool.Spec.Purge, want) {
				t.Errorf("exit code %d, want %d; asked is %+v, want %+v\n%s%s", code, tc.code, pool.Spec.Purge, want, out.String(), errs.String())
			}
			for _, part := range tc.says {
				if !strings.Contains(out.String()+errs.String(), part) {
					t.Errorf("it does not say %q:\n%s%s", part, out.String(), errs.String())
				}
			}
		})
	}
}

func TestPurgeJSON(t *testing.T) {
	t.Parallel()
	c := leftCluster(nil)
	code, out, errs := c.run(t, "orphans", "purge", "node1/fast/pvc-3", "-o", "json")
	var plan purgePlan
	if err := json.Unmarshal([]byte(out), &plan); err != nil || code != exitWell {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if plan.Pool != "fast-node1" || plan.LeftOver.Identity != "vg/lv" || plan.Asked || !strings.HasSuffix(plan.Next, "--yes") {
		t.Errorf("it is %+v", plan)
	}
}

func TestPurgeFlagsAreItsOwn(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"status", "--yes"}, {"orphans", "list", "--withdraw"}, {"orphans", "list", "--confirm=x"}, {"orphans", "purge", "a/b/c", "--dry-run"}} {
		if code, _, errs := newCluster().run(t, args...); code != exitUsage || !strings.Contains(errs, "only") {
			t.Errorf("%s: exit code %d, %s", args, code, errs)
		}
	}
}

// What a machine needs to name a left-over to purge it.
func TestOrphansListNamesLeftOversInFull(t *testing.T) {
	t.Parallel()
	_, out, errs := leftCluster(nil).run(t, "orphans", "list", "-o", "json")
	var rows []orphanRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	i := slices.IndexFunc(rows, func(r orphanRow) bool { return r.UID == leftUID })
	if i < 0 || rows[i].Pool != "fast-node1" || rows[i].Identity != "vg/lv" || rows[i].Node != "node1" {
		t.Errorf("it is not among %+v", rows)
	}
}

func TestOrphansListTellsOfPurges(t *testing.T) {
	t.Parallel()
	c := leftCluster(nil, berth.PurgeStatus{UID: leftUID, State: berth.PurgeQuarantined, Message: "nobody gets it"})
	_, out, _ := c.run(t, "orphans", "list", "-o", "wide")
	for _, part := range []string{"to be purged, Quarantined: nobody gets it", "in use: mounted at /mnt", "shop/orders", "fast-node1: /srv/berth/volumes/x ", "NoRecord"} {
		if !strings.Contains(out, part) {
			t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
}
