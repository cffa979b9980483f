// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// purgePoll is how often is looked for the agent's answer.
const purgePoll = 500 * time.Millisecond

// purgePlan is what is to be purged, and how far that is.
type purgePlan struct {
	Node string `json:"node"`
	// Pool is the object's name; empty of a whole disk.
	Pool string `json:"pool,omitempty"`
	// Disk is the BlockDevice's name, of a whole disk.
	Disk     string         `json:"disk,omitempty"`
	LeftOver berth.LeftOver `json:"leftOver"`
	// Refusals are why it is not asked for.
	Refusals []string `json:"refusals,omitempty"`
	// Asked is true when the request was written by this call, or stood already.
	Asked bool `json:"asked"`
	// Purge is what the agent says of the request; nil before it has said anything.
	Purge *berth.PurgeStatus `json:"purge,omitempty"`
	// Next is the command that comes next; empty when there is none.
	Next string `json:"next,omitempty"`
}

// where is how the command line names it.
func (l *purgePlan) where() string {
	if l.Disk != "" {
		return l.Node + "/" + l.Disk
	}
	return l.Node + "/" + l.Pool + "/" + string(l.LeftOver.UID)
}

// asks are spec.purge of a Pool or a BlockDevice, and answers their status.purges.
func asks(home client.Object) *[]berth.PurgeRequest {
	if d, is := home.(*berth.BlockDevice); is {
		return &d.Spec.Purge
	}
	return &home.(*berth.Pool).Spec.Purge //nolint:errcheck,forcetypeassert // there is no third
}

func answers(home client.Object) []berth.PurgeStatus {
	if d, is := home.(*berth.BlockDevice); is {
		return d.Status.Purges
	}
	return home.(*berth.Pool).Status.Purges //nolint:errcheck,forcetypeassert // there is no third
}

// purge is the two phases of removing a left-over, and the way back from the first. It is
// troubled when it refuses, or when the agent does, or does not answer.
func (p *plugin) purge(ctx context.Context, what string) (bool, error) {
	if node, name, isDisk := splitDisk(what); isDisk {
		return p.purgeDisk(ctx, node, name)
	}
	node, poolName, name, err := splitLeftOver(what)
	if err != nil {
		return false, err
	}
	pool, err := p.poolOf(ctx, node, poolName)
	if err != nil {
		return false, err
	}
	plan := &purgePlan{Node: node, Pool: pool.Name}
	asked := slices.IndexFunc(pool.Spec.Purge, func(r berth.PurgeRequest) bool { return r.UID == name })
	if asked < 0 || !p.o.Withdraw && p.o.Confirm == "" {
		if plan.LeftOver, err = leftOverOf(pool, name); err != nil {
			return false, err
		}
		asked = slices.IndexFunc(pool.Spec.Purge, func(r berth.PurgeRequest) bool { return r.UID == string(plan.LeftOver.UID) })
	} else {
		// It may be gone from the list by now.
		req := pool.Spec.Purge[asked]
		plan.LeftOver = berth.LeftOver{Kind: req.Kind, UID: types.UID(req.UID), Identity: req.Identity}
		if l, err := leftOverOf(pool, name); err == nil {
			plan.LeftOver = l
		}
	}
	return p.step(ctx, pool, plan, asked)
}

// step is the phase that is wanted, of what a Pool or a BlockDevice asks for.
func (p *plugin) step(ctx context.Context, home client.Object, plan *purgePlan, asked int) (bool, error) {
	plan.read(home)
	switch {
	case p.o.Withdraw:
		return p.withdraw(ctx, home, plan, asked)
	case p.o.Confirm != "":
		return p.confirm(ctx, home, plan, asked)
	}
	return p.request(ctx, home, plan, asked)
}

// splitLeftOver reads NODE/POOL/NAME.
func splitLeftOver(what string) (node, pool, name string, err error) {
	parts := strings.SplitN(what, "/", 3) //nolint:mnd // the three
	if len(parts) != 3 || slices.Contains(parts, "") {
		return "", "", "", fmt.Errorf("%w: %q is not NODE/POOL/NAME or NODE/DISK, as kubectl berth orphans list -o wide shows them", errUsage, what)
	}
	return parts[0], parts[1], parts[2], nil
}

// poolOf finds a pool of a node by its own name or by that of its PoolSet.
func (p *plugin) poolOf(ctx context.Context, node, name string) (*berth.Pool, error) {
	pools := &berth.PoolList{}
	if err := p.list(ctx, pools, "Pools"); err != nil {
		return nil, err
	}
	for i := range pools.Items {
		if pool := &pools.Items[i]; pool.Spec.NodeName == node && (pool.Name == name || pool.Spec.PoolSetName == name) {
			return pool, nil
		}
	}
	return nil, fmt.Errorf("%w: node %s has no pool %s; kubectl berth pools shows those that there are", errUsage, node, name)
}

// leftOverOf finds what is left over in a pool by its UID, the name that it had, or its place.
func leftOverOf(pool *berth.Pool, name string) (berth.LeftOver, error) {
	var found []berth.LeftOver
	for _, l := range pool.Status.LeftOvers {
		if name == string(l.UID) || name == l.Name || name == l.Location {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return berth.LeftOver{}, fmt.Errorf("%w: pool %s has no left-over %s, as its agent has said last; kubectl berth orphans list -o wide shows those that there are", errUsage, pool.Name, name)
	}
	return berth.LeftOver{}, fmt.Errorf("%w: %d left-overs of pool %s are called %s: name one by its UID", errUsage, len(found), pool.Name, name)
}

// whyKept is what keeps any left-over from being purged and adopted, as its agent has said last.
func whyKept(l berth.LeftOver) []string {
	switch {
	case l.Identity == "":
		return []string{"the agent does not say which thing it is, so that it cannot be named in full: look at its log"}
	case l.InUse != "":
		return []string{"it is in use: " + l.InUse}
	}
	return nil
}

func (l *purgePlan) read(home client.Object) {
	l.Purge = nil
	all := answers(home)
	if i := slices.IndexFunc(all, func(s berth.PurgeStatus) bool { return s.UID == string(l.LeftOver.UID) }); i >= 0 {
		l.Purge = &all[i]
	}
}

// request is the first phase: it asks the agent to look at the left-over and to put it into
// quarantine.
func (p *plugin) request(ctx context.Context, home client.Object, plan *purgePlan, asked int) (bool, error) {
	l := plan.LeftOver
	if l.Kind == berth.LeftOverDirectory {
		plan.refuse("it has no mark of Berth, which touches nothing that it has not made")
	} else {
		plan.Refusals = append(plan.Refusals, whyKept(l)...)
	}
	if err := p.refuseClaimed(ctx, plan); err != nil {
		return false, err
	}
	requests := asks(home)
	plan.Asked = asked >= 0 && (*requests)[asked].Identity == l.Identity
	if len(plan.Refusals) > 0 {
		return true, p.tellPurge(plan)
	}
	if !p.o.Yes {
		if !plan.Asked {
			plan.Next = fmt.Sprintf("kubectl berth orphans purge %s --yes", plan.where())
		}
		plan.next()
		return false, p.tellPurge(plan)
	}
	if !plan.Asked {
		base := copyOf(home)
		request := berth.PurgeRequest{UID: string(l.UID), Kind: l.Kind, Identity: l.Identity}
		// What is done with makes room. One of another thing at the same UID is another request.
		*requests = slices.DeleteFunc(*requests, func(r berth.PurgeRequest) bool {
			return slices.ContainsFunc(answers(home), func(s berth.PurgeStatus) bool { return s.UID == r.UID && s.State == berth.PurgePurged })
		})
		if slices.ContainsFunc(*requests, func(r berth.PurgeRequest) bool { return plan.Disk != "" || r.UID == request.UID }) {
			return false, fmt.Errorf("%w: something else of that name is asked to be purged: withdraw that first: kubectl berth orphans purge %s --withdraw --yes", errUsage, plan.where())
		}
		*requests = append(*requests, request)
		if err := p.writePurge(ctx, home, base); err != nil {
			return false, err
		}
		plan.Asked = true
	}
	answered, err := p.awaitPurge(ctx, plan, func(s *berth.PurgeStatus) bool { return s.State != berth.PurgeWaiting })
	if err != nil {
		return false, err
	}
	plan.next()
	return !answered || plan.Purge.State == berth.PurgeRefused, p.tellPurge(plan)
}

// confirm is the second phase.
func (p *plugin) confirm(ctx context.Context, home client.Object, plan *purgePlan, asked int) (bool, error) {
	if plan.Asked = asked >= 0; !plan.Asked {
		plan.refuse("nobody has asked to purge it yet: kubectl berth orphans purge %s", plan.where())
	} else if plan.Purge == nil || plan.Purge.Token == "" || plan.Purge.Token != p.o.Confirm {
		plan.refuse("--confirm is not the token of its quarantine, which may have ended: kubectl berth orphans purge %s shows how it is", plan.where())
	}
	if err := p.refuseClaimed(ctx, plan); err != nil {
		return false, err
	}
	if len(plan.Refusals) > 0 {
		return true, p.tellPurge(plan)
	}
	if !p.o.Yes {
		plan.next()
		return false, p.tellPurge(plan)
	}
	base := copyOf(home)
	(*asks(home))[asked].Confirm = p.o.Confirm
	if err := p.writePurge(ctx, home, base); err != nil {
		return false, err
	}
	answered, err := p.awaitPurge(ctx, plan, func(s *berth.PurgeStatus) bool {
		return s.State == berth.PurgePurged || s.State == berth.PurgeRefused || s.State == berth.PurgeQuarantined && s.Token != p.o.Confirm
	})
	if err != nil {
		return false, err
	}
	begun := plan.Purge != nil && plan.Purge.State == berth.PurgePurging
	return !begun && (!answered || plan.Purge.State != berth.PurgePurged), p.tellPurge(plan)
}

// withdraw is the way back from the first phase.
func (p *plugin) withdraw(ctx context.Context, home client.Object, plan *purgePlan, asked int) (bool, error) {
	switch {
	case p.o.Confirm != "":
		return false, fmt.Errorf("%w: --withdraw or --confirm", errUsage)
	case asked < 0:
		plan.refuse("nobody has asked to purge it")
	case plan.Purge != nil && plan.Purge.State == berth.PurgePurging:
		plan.refuse("its removal has begun, and cannot be taken back")
	}
	if len(plan.Refusals) > 0 {
		return true, p.tellPurge(plan)
	}
	plan.Asked = true
	if !p.o.Yes {
		plan.Next = fmt.Sprintf("kubectl berth orphans purge %s --withdraw --yes", plan.where())
		return false, p.tellPurge(plan)
	}
	base, requests := copyOf(home), asks(home)
	*requests = slices.Delete(*requests, asked, asked+1)
	if err := p.writePurge(ctx, home, base); err != nil {
		return false, err
	}
	plan.Asked, plan.Purge = false, nil
	return false, p.tellPurge(plan)
}

func (l *purgePlan) refuse(format string, args ...any) {
	l.Refusals = append(l.Refusals, fmt.Sprintf(format, args...))
}

// next is the command that confirms what is in quarantine.
func (l *purgePlan) next() {
	if l.Purge != nil && l.Purge.State == berth.PurgeQuarantined {
		l.Next = fmt.Sprintf("kubectl berth orphans purge %s --confirm=%s --yes", l.where(), l.Purge.Token)
	}
}

// refuseClaimed looks for claims that wait for the volume: agents may not read claims.
func (p *plugin) refuseClaimed(ctx context.Context, plan *purgePlan) error {
	bound, err := p.claimsOf(ctx, plan.LeftOver.Name)
	for _, claim := range bound {
		plan.refuse("claim %s is bound to a PersistentVolume of that name, which may come back", claim)
	}
	return err
}

// claimsOf are the claims, as namespace/name, that are bound to a PersistentVolume, which may be
// gone; none of what has no name: the agent refuses that.
func (p *plugin) claimsOf(ctx context.Context, volume string) (bound []string, err error) {
	if volume == "" {
		return nil, nil
	}
	claims := &corev1.PersistentVolumeClaimList{}
	if err := p.list(ctx, claims, "claims"); err != nil {
		return nil, err
	}
	for i := range claims.Items {
		if c := &claims.Items[i]; c.Spec.VolumeName == volume {
			bound = append(bound, c.Namespace+"/"+c.Name)
		}
	}
	return bound, nil
}

// writePurge writes the requests, unless somebody else has written to the object meanwhile.
func (p *plugin) writePurge(ctx context.Context, home, base client.Object) error {
	if err := p.client.Patch(ctx, home, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write spec.purge of %s: %w", home.GetName(), err)
	}
	return nil
}

func copyOf(home client.Object) client.Object {
	return home.DeepCopyObject().(client.Object) //nolint:errcheck,forcetypeassert // a copy is what it is a copy of
}

// awaitPurge waits for what the agent says of the request.
func (p *plugin) awaitPurge(ctx context.Context, plan *purgePlan, enough func(*berth.PurgeStatus) bool) (answered bool, err error) {
	look := func(ctx context.Context) (bool, error) {
		var home client.Object = &berth.Pool{}
		if plan.Disk != "" {
			home = &berth.BlockDevice{}
		}
		name := cmp.Or(plan.Disk, plan.Pool)
		if err := p.client.Get(ctx, client.ObjectKey{Name: name}, home); err != nil {
			return false, fmt.Errorf("read what is said of %s: %w", name, err)
		}
		plan.read(home)
		return plan.Purge != nil && enough(plan.Purge), nil
	}
	if answered, err := look(ctx); answered || err != nil || p.o.Wait <= 0 {
		return answered, err
	}
	err = wait.PollUntilContextTimeout(ctx, purgePoll, p.o.Wait, false, look)
	if wait.Interrupted(err) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

func (p *plugin) tellPurge(plan *purgePlan) error {
	if p.o.Output == "json" {
		return p.json(plan)
	}
	plan.print(p.out, p.o.Yes)
	return nil
}

// print says it to people.
func (l *purgePlan) print(out io.Writer, changed bool) {
	if l.Disk != "" {
		fmt.Fprintf(out, "Volume on the whole disk %s of node %s\n", l.Disk, l.Node)
	} else {
		fmt.Fprintf(out, "%s in pool %s of node %s\n", l.LeftOver.Kind, l.Pool, l.Node)
	}
	whose := [2][2]string{{"Volume", l.LeftOver.Name}, {"Claim", l.LeftOver.Claim}}
	if l.LeftOver.Kind == berth.LeftOverSnapshot {
		whose = [2][2]string{{"Snapshot", l.LeftOver.Name}, {"Of", l.LeftOver.Of}}
	}
	for _, line := range [][2]string{
		{"UID", string(l.LeftOver.UID)},
		whose[0],
		whose[1],
		{"Place", l.LeftOver.Location},
		{"Size", bytes(l.LeftOver.SizeBytes)},
		{"Identity", l.LeftOver.Identity},
		{"In use", cmp.Or(l.LeftOver.InUse, "no mount is known")},
	} {
		fmt.Fprintf(out, "  %-9s %s\n", line[0], orNone(line[1]))
	}
	if s := l.Purge; s != nil {
		since := ""
		if s.Since != nil {
			since = " since " + s.Since.UTC().Format("2006-01-02 15:04:05 MST")
		}
		fmt.Fprintf(out, "\nThe agent says: %s%s: %s\n", s.State, since, s.Message)
		if s.Holds != "" {
			fmt.Fprintf(out, "It holds: %s\n", s.Holds)
		}
	}
	switch {
	case len(l.Refusals) > 0:
		fmt.Fprintln(out, "\nNothing was changed:")
		for _, refusal := range l.Refusals {
			fmt.Fprintln(out, "  "+refusal)
		}
		return
	case !changed && l.Purge == nil && !l.Asked:
		fmt.Fprintln(out, "\nNothing was changed. It is put into quarantine first, where nobody gets it, and removed when you have confirmed that.")
	case changed && l.Asked && l.Purge == nil:
		fmt.Fprintf(out, "\nIt is asked for, and the agent of node %s has not answered yet: run the same command again.\n", l.Node)
	case changed && !l.Asked:
		fmt.Fprintln(out, "\nThe request was withdrawn. Nothing was removed, and it can be used again.")
	}
	if l.Next != "" {
		fmt.Fprintf(out, "\nNext, if nobody needs what it holds:\n  %s\n", l.Next)
	}
}
