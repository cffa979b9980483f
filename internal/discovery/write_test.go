// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/pkg/device"
)

// TestAWriteNamesOnlyWhatChanged: what this version does not know of an object stays as
// it is, for no write names it; and no write names anything without the version of the
// object that it was made from.
func TestAWriteNamesOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	var written []map[string]any
	c := interceptor.NewClient(newFakeClient(t), interceptor.Funcs{
		Update: func(_ context.Context, _ client.WithWatch, o client.Object, _ ...client.UpdateOption) error {
			t.Errorf("the whole of %s is written", o.GetName())
			return nil
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			data, err := patch.Data(o)
			if err != nil {
				return err
			}
			fields := map[string]any{}
			if err := json.Unmarshal(data, &fields); err != nil {
				return err
			}
			written = append(written, fields)
			return c.Patch(ctx, o, patch, opts...)
		},
	})
	inv := newTestInventory(t, host, c)
	inv.start(t)
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	if len(written) != 1 {
		t.Fatalf("%d writes of a claim: %v", len(written), written)
	}
	for _, tt := range []struct {
		of   any
		want []string
	}{
		{written[0], []string{"metadata", "spec", "status"}},
		{written[0]["metadata"], []string{"finalizers", "resourceVersion"}},
		{written[0]["spec"], []string{"claimRef"}},
		{written[0]["status"], []string{"claimState", "conditions"}},
	} {
		fields, _ := tt.of.(map[string]any)
		if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, tt.want) {
			t.Errorf("a claim writes %v, want %v", got, tt.want)
		}
	}
}
