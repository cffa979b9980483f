// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

var errConnection = errors.New("connection reset by peer")

// TestClaimWhoseAnswerWasLost: the API server has stored the claim, and the agent
// never heard of it. Nobody else gets the disk, and the same owner gets it again.
func TestClaimWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	lose := false
	c := interceptor.NewClient(newFakeClient(t), interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if err := c.Patch(ctx, o, patch, opts...); err != nil {
				return err
			}
			if lose {
				return errConnection
			}
			return nil
		},
	})
	inv := newTestInventory(t, host, c)
	inv.start(t)
	owner := device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}
	lose = true
	if _, err := inv.Claim(t.Context(), nameOf("A"), owner); !errors.Is(err, errConnection) {
		t.Fatalf("Claim: %v", err)
	}
	lose = false
	if claimed, found, err := inv.ClaimedBy(t.Context(), owner.UID); err != nil || !found || claimed.Owner != owner {
		t.Errorf("ClaimedBy = %+v, %v, %v", claimed, found, err)
	}
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "v", Name: "other", Kind: device.OwnerVolume}); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Claim by another: %v, want ErrBusy", err)
	}
	if _, err := inv.Claim(t.Context(), nameOf("A"), owner); err != nil {
		t.Errorf("Claim again: %v", err)
	}
}

// TestClaimThatNeverArrived: the same error, but nothing was stored.
func TestClaimThatNeverArrived(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	fail := false
	c := interceptor.NewClient(newFakeClient(t), interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if fail {
				return errConnection
			}
			return c.Patch(ctx, o, patch, opts...)
		},
	})
	inv := newTestInventory(t, host, c)
	inv.start(t)
	fail = true
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}); !errors.Is(err, errConnection) {
		t.Fatalf("Claim: %v", err)
	}
	fail = false
	if _, found, err := inv.ClaimedBy(t.Context(), "u"); err != nil || found {
		t.Errorf("ClaimedBy = %v, %v", found, err)
	}
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "v", Name: "other", Kind: device.OwnerVolume}); err != nil {
		t.Errorf("Claim by another: %v", err)
	}
}

// TestUnreachableAPIServer: what cannot be known is an error, not a no.
func TestUnreachableAPIServer(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	down := false
	c := interceptor.NewClient(newFakeClient(t), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			if down {
				return errConnection
			}
			return c.List(ctx, l, opts...)
		},
		Get: func(ctx context.Context, c client.WithWatch, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if down {
				return errConnection
			}
			return c.Get(ctx, k, o, opts...)
		},
	})
	inv := newTestInventory(t, host, c)
	inv.start(t)
	down = true
	if _, found, err := inv.ClaimedBy(t.Context(), "u"); err == nil || found {
		t.Errorf("ClaimedBy = %v, %v, want an error", found, err)
	}
	if _, err := inv.Resolve(t.Context(), nameOf("A")); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Resolve: %v, want an error that is not ErrNotFound", err)
	}
}

// TestNamesShuffledByAReboot: what stands in the objects is from before, and the
// paths in them are other disks' now. No path of then is handed out.
func TestNamesShuffledByAReboot(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	before := newTestInventory(t, host, newFakeClient(t))
	before.start(t)
	owner := device.Owner{UID: "pool", Name: "fast-node1", Kind: device.OwnerPool}
	if _, err := before.Claim(t.Context(), nameOf("A"), owner); err != nil {
		t.Fatal(err)
	}
	host.removeDisk("vdb")
	host.removeDisk("vdc")
	host.addDisk("vdb", "B", 16, 1<<30)
	host.addDisk("vdc", "A", 32, 1<<30)
	after := newTestInventory(t, host, before.client)
	if err := after.loadObjects(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := after.rescan(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(after.ready) // not one object was brought up to date
	claims, err := after.Claims(t.Context())
	if err != nil || len(claims) != 1 || claims[0].Path != "/dev/vdc" {
		t.Errorf("Claims = %+v, %v, want A at /dev/vdc", claims, err)
	}
	if claimed, _, err := after.ClaimedBy(t.Context(), owner.UID); err != nil || claimed.Path != "/dev/vdc" {
		t.Errorf("ClaimedBy = %+v, %v", claimed, err)
	}
	// And once more, behind the mirror's back.
	host.removeDisk("vdc")
	host.addDisk("vdc", "C", 32, 1<<30)
	if claims, err = after.Claims(t.Context()); err != nil || len(claims) != 1 || claims[0].Path != "" {
		t.Errorf("Claims = %+v, %v, want no path", claims, err)
	}
}

func TestObjectDeletedByHand(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	free := inv.get(t, nameOf("A"))
	if err := inv.client.Delete(t.Context(), free); err != nil {
		t.Fatal(err)
	}
	inv.ObserveDeletion(free)
	inv.settleAll(t)
	inv.get(t, nameOf("A")) // it was made anew, or this fails
	if _, err := inv.Claim(t.Context(), nameOf("B"), device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	if err := inv.client.Delete(t.Context(), inv.get(t, nameOf("B"))); err != nil {
		t.Fatal(err)
	}
	held := &v1alpha1.BlockDevice{}
	if err := inv.client.Get(t.Context(), key(nameOf("B")), held); apierrors.IsNotFound(err) {
		t.Fatal("kubectl delete made Berth forget a claim")
	}
	inv.ObserveObject(held)
	token, err := inv.Release(t.Context(), nameOf("B"), "u", volume.WipeZero)
	if err != nil {
		t.Fatal(err)
	}
	if err := inv.FinishWipe(t.Context(), nameOf("B"), token, true, ""); err != nil {
		t.Fatal(err)
	}
	if err := inv.client.Get(t.Context(), key(nameOf("B")), &v1alpha1.BlockDevice{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deletion did not go on once the disk was free: %v", err)
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "FAST-1", 16, 8<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	bd := inv.get(t, nameOf("FAST-1"))
	yes, no := true, false
	quantity := mustQuantity
	cases := []struct {
		name string
		sel  *v1alpha1.DeviceSelector
		want bool
	}{
		{"nil", nil, true},
		{"empty", &v1alpha1.DeviceSelector{}, true},
		{"serial", &v1alpha1.DeviceSelector{Serials: []string{"SLOW-*", "FAST-*"}}, true},
		{"another serial", &v1alpha1.DeviceSelector{Serials: []string{"SLOW-*"}}, false},
		{"name", &v1alpha1.DeviceSelector{Names: []string{bd.Name}}, true},
		{"another name", &v1alpha1.DeviceSelector{Names: []string{"bd-x"}}, false},
		{"path", &v1alpha1.DeviceSelector{Paths: []string{"/dev/vd[a-c]"}}, true},
		{"another path", &v1alpha1.DeviceSelector{Paths: []string{"/dev/vd"}}, false},
		{"transport", &v1alpha1.DeviceSelector{Transports: []string{"nvme", "virtio"}}, true},
		{"another transport", &v1alpha1.DeviceSelector{Transports: []string{"nvme"}}, false},
		{"solid", &v1alpha1.DeviceSelector{Rotational: &no}, true},
		{"spinning", &v1alpha1.DeviceSelector{Rotational: &yes}, false},
		{"erased by a key", &v1alpha1.DeviceSelector{CryptoErase: &yes}, false},
		{"not erased by a key", &v1alpha1.DeviceSelector{CryptoErase: &no}, true},
		{"as large as the least", &v1alpha1.DeviceSelector{MinSize: quantity("8Gi")}, true},
		{"too small", &v1alpha1.DeviceSelector{MinSize: quantity("9Gi")}, false},
		{"as large as the most", &v1alpha1.DeviceSelector{MaxSize: quantity("8Gi")}, true},
		{"too large", &v1alpha1.DeviceSelector{MaxSize: quantity("7Gi")}, false},
		{"two fields, one of which does not match", &v1alpha1.DeviceSelector{Serials: []string{"FAST-*"}, MinSize: quantity("9Gi")}, false},
	}
	for _, c := range cases {
		if got, err := Matches(c.sel, bd); err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	weak := bd.DeepCopy()
	weak.Status.Identity.Quality = v1alpha1.IdentityWeak
	for sel, want := range map[*v1alpha1.DeviceSelector]bool{nil: false, {}: false, {AllowWeakIdentity: true}: true} {
		if got, err := Matches(sel, weak); err != nil || got != want {
			t.Errorf("weak identity with %+v: %v, %v, want %v", sel, got, err, want)
		}
	}
	if _, err := Matches(&v1alpha1.DeviceSelector{Models: []string{"[a"}}, bd); !errors.Is(err, volume.ErrInvalid) || err.Error() != `deviceSelector.models: "[a" is not a valid glob: invalid request` {
		t.Errorf("a bad glob: %v", err)
	}
}
