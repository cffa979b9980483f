// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestParseParameters(t *testing.T) {
	t.Parallel()
	size := resource.MustParse("100Gi")
	flash, yes := false, true
	tests := map[string]struct {
		params map[string]string
		want   provision.Parameters
		// refused are parts of the message; nil means accepted.
		refused []string
	}{
		"lvm with defaults": {
			params: map[string]string{"mode": "lvm", "pool": "fast"},
			want:   provision.Parameters{Mode: berth.ModeLVM, Pools: []string{"fast"}, FSType: "ext4", Wipe: berth.WipeZero},
		},
		"lvm with everything": {
			params: map[string]string{"mode": "lvm", "pool": "fast", "csi.storage.k8s.io/fstype": "xfs", "wipe": "discard"},
			want:   provision.Parameters{Mode: berth.ModeLVM, Pools: []string{"fast"}, FSType: "xfs", Wipe: berth.WipeDiscard},
		},
		"lvm with options of mkfs": {
			params: map[string]string{"mode": "lvm", "pool": "fast", "mkfsOptions": " -b 1024  -m 1 "},
			want:   provision.Parameters{Mode: berth.ModeLVM, Pools: []string{"fast"}, FSType: "ext4", Wipe: berth.WipeZero, MkfsOptions: []string{"-b", "1024", "-m", "1"}},
		},
		"an option that forces": {
			params:  map[string]string{"mode": "lvm", "pool": "fast", "mkfsOptions": "-F"},
			refused: []string{`parameter mkfsOptions: `, `option "-F" of mkfs.ext4 is not allowed; allowed are -C -E`},
		},
		"options of another filesystem": {
			params:  map[string]string{"mode": "lvm", "pool": "fast", "csi.storage.k8s.io/fstype": "xfs", "mkfsOptions": "-O quota"},
			refused: []string{`option "-O" of mkfs.xfs`},
		},
		"options for a directory": {
			params:  map[string]string{"mode": "hostpath", "pool": "local", "mkfsOptions": "-m 1"},
			refused: []string{"mkfsOptions has no meaning in mode hostpath"},
		},
		"hostpath has no filesystem": {
			params: map[string]string{"mode": "hostpath", "pool": "local", "wipe": "none"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"local"}, Wipe: berth.WipeNone},
		},
		"device erased by its key": {
			params: map[string]string{"mode": "device", "wipe": "cryptoErase"},
			want: provision.Parameters{
				Mode: berth.ModeDevice, FSType: "ext4", Wipe: berth.WipeCryptoErase, DeviceSelector: &berth.DeviceSelector{CryptoErase: &yes},
			},
		},
		"device with selector": {
			params: map[string]string{"mode": "device", "deviceSelector": "rotational: false\nminSize: 100Gi\n"},
			want: provision.Parameters{
				Mode: berth.ModeDevice, FSType: "ext4", Wipe: berth.WipeZero,
				DeviceSelector: &berth.DeviceSelector{Rotational: &flash, MinSize: &size},
			},
		},
		"device with selector in JSON": {
			params: map[string]string{"mode": "device", "deviceSelector": `{"models":["FAST*"]}`},
			want: provision.Parameters{
				Mode: berth.ModeDevice, FSType: "ext4", Wipe: berth.WipeZero,
				DeviceSelector: &berth.DeviceSelector{Models: []string{"FAST*"}},
			},
		},
		"nothing":          {params: nil, refused: []string{`"mode" is missing`, "lvm, device, hostpath"}},
		"unknown mode":     {params: map[string]string{"mode": "zfs"}, refused: []string{`unknown mode "zfs"`, "one of lvm, device, hostpath"}},
		"misspelt mode":    {params: map[string]string{"mode": "LVM", "pool": "fast"}, refused: []string{`unknown mode "LVM"`, `did you mean "lvm"?`}},
		"lvm without pool": {params: map[string]string{"mode": "lvm"}, refused: []string{`"pool" is missing`, "PoolSet"}},
		"several pools": {
			params: map[string]string{"mode": "hostpath", "pool": "dirs-a, dirs-b"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"dirs-a", "dirs-b"}, Wipe: berth.WipeZero},
		},
		"a pool twice":               {params: map[string]string{"mode": "lvm", "pool": "fast,slow,fast"}, refused: []string{`pool: "fast" is there twice`}},
		"a comma too many":           {params: map[string]string{"mode": "lvm", "pool": "fast,"}, refused: []string{`pool: "" cannot be the name`}},
		"too many pools":             {params: map[string]string{"mode": "lvm", "pool": strings.Repeat("a,", 32) + "b"}, refused: []string{"it names 33 PoolSets, and at most 32 are allowed"}},
		"bad pool name":              {params: map[string]string{"mode": "lvm", "pool": "Fast Pool"}, refused: []string{`"Fast Pool" cannot be the name`}},
		"device with pool":           {params: map[string]string{"mode": "device", "pool": "fast"}, refused: []string{"pool has no meaning in mode device", "deviceSelector"}},
		"hostpath + fstype":          {params: map[string]string{"mode": "hostpath", "pool": "l", "csi.storage.k8s.io/fstype": "ext4"}, refused: []string{"no meaning in mode hostpath"}},
		"unknown fstype":             {params: map[string]string{"mode": "device", "csi.storage.k8s.io/fstype": "ext3"}, refused: []string{`unknown filesystem "ext3"`, `did you mean "ext4"?`, "ext4, xfs"}},
		"unknown wipe":               {params: map[string]string{"mode": "device", "wipe": "zeros"}, refused: []string{`unknown policy "zeros"`, `did you mean "zero"?`}},
		"misspelt key":               {params: map[string]string{"mode": "device", "wype": "none"}, refused: []string{`"wype" is not known; did you mean "wipe"?`, "allowed are mode, pool,"}},
		"a key of a logical volume":  {params: map[string]string{"mode": "lvm", "pool": "fast", "wipe": "cryptoErase"}, refused: []string{"cryptoErase is for mode device"}},
		"a key of disks without one": {params: map[string]string{"mode": "device", "wipe": "cryptoErase", "deviceSelector": "cryptoErase: false"}, refused: []string{"cryptoErase is false"}},
		"plain fstype":               {params: map[string]string{"mode": "device", "fsType": "xfs"}, refused: []string{`"fsType" is not known; did you mean "csi.storage.k8s.io/fstype"?`}},
		"far from any key":           {params: map[string]string{"mode": "device", "replicaCount": "3"}, refused: []string{`"replicaCount" is not known; allowed`}},
		"secret": {
			params:  map[string]string{"mode": "device", "csi.storage.k8s.io/node-stage-secret-name": "s"},
			refused: []string{`"csi.storage.k8s.io/node-stage-secret-name": without encryption Berth uses no secrets`},
		},
		"another secret": {
			params:  map[string]string{"mode": "device", "csi.storage.k8s.io/provisioner-secret-name": "s"},
			refused: []string{`"csi.storage.k8s.io/provisioner-secret-name": Berth uses no such secret`},
		},
		"encrypted": {
			params: map[string]string{
				"mode": "lvm", "pool": "fast", "encryption": "luks2",
				"csi.storage.k8s.io/node-stage-secret-name": "s", "csi.storage.k8s.io/node-stage-secret-namespace": "n",
			},
			want: provision.Parameters{Mode: berth.ModeLVM, Pools: []string{"fast"}, FSType: "ext4", Wipe: berth.WipeZero, Encryption: berth.EncryptionLUKS2},
		},
		"encrypted otherwise": {
			params:  map[string]string{"mode": "lvm", "pool": "fast", "encryption": "luks1"},
			refused: []string{`parameter encryption: unknown encryption "luks1"; did you mean "luks2"?`},
		},
		"an encryption of nothing": {
			params:  map[string]string{"mode": "lvm", "pool": "fast", "encryption": ""},
			refused: []string{`parameter encryption: unknown encryption ""`},
		},
		"an encrypted directory": {
			params:  map[string]string{"mode": "hostpath", "pool": "local", "encryption": "luks2"},
			refused: []string{"parameter encryption needs a block device of the volume's own"},
		},
		"encryption by the name of another driver": {
			params:  map[string]string{"mode": "lvm", "pool": "fast", "encrypted": "true"},
			refused: []string{`parameter "encrypted" is not known; did you mean "encryption"?`},
		},
		"sizes enforced": {
			params: map[string]string{"mode": "hostpath", "pool": "local", "requireQuota": "true"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"local"}, Wipe: berth.WipeZero, RequireQuota: true},
		},
		"sizes promised": {
			params: map[string]string{"mode": "hostpath", "pool": "local", "requireQuota": "false"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"local"}, Wipe: berth.WipeZero},
		},
		"sizes enforced perhaps":                {params: map[string]string{"mode": "hostpath", "pool": "local", "requireQuota": "yes"}, refused: []string{`requireQuota: "yes" is not allowed; it is one of true, false`}},
		"sizes enforced where they always are":  {params: map[string]string{"mode": "lvm", "pool": "fast", "requireQuota": "true"}, refused: []string{"requireQuota is for mode hostpath"}},
		"a quota by the name of another driver": {params: map[string]string{"mode": "hostpath", "pool": "local", "XFSQuota": "true"}, refused: []string{`did you mean "requireQuota"?`}},
		"kept for a while": {
			params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "72h"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"local"}, Wipe: berth.WipeZero, RetainFor: 72 * time.Hour},
		},
		"kept for no time": {
			params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "0s"},
			want:   provision.Parameters{Mode: berth.ModeHostpath, Pools: []string{"local"}, Wipe: berth.WipeZero},
		},
		"kept for days":            {params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "3d"}, refused: []string{`parameter retainFor: "3d" is not allowed; it is a duration in whole seconds from 0s to 87600h, as 72h`}},
		"kept for nothing":         {params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": ""}, refused: []string{`retainFor: "" is not allowed`}},
		"kept since yesterday":     {params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "-1h"}, refused: []string{`retainFor: "-1h" is not allowed`}},
		"kept for a moment":        {params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "1500ms"}, refused: []string{`retainFor: "1500ms" is not allowed`}},
		"kept for ever":            {params: map[string]string{"mode": "hostpath", "pool": "local", "retainFor": "87600h1s"}, refused: []string{`retainFor: "87600h1s" is not allowed`}},
		"kept of a logical volume": {params: map[string]string{"mode": "lvm", "pool": "fast", "retainFor": "72h"}, refused: []string{"parameter retainFor is for mode hostpath", "reclaimPolicy: Retain"}},
		"kept of a disk":           {params: map[string]string{"mode": "device", "retainFor": "0s"}, refused: []string{"parameter retainFor is for mode hostpath"}},
		"kept by another name":     {params: map[string]string{"mode": "hostpath", "pool": "local", "retention": "72h"}, refused: []string{`did you mean "retainFor"?`}},
		"selector in mode lvm":     {params: map[string]string{"mode": "lvm", "pool": "fast", "deviceSelector": "{}"}, refused: []string{"deviceSelector is for mode device"}},
		"selector with bad key":    {params: map[string]string{"mode": "device", "deviceSelector": "rotationl: true"}, refused: []string{"deviceSelector", "rotationl"}},
		"selector with bad glob":   {params: map[string]string{"mode": "device", "deviceSelector": `models: ["[a"]`}, refused: []string{`models: "[a" is not a valid glob`}},
		"selector that is empty by size": {
			params:  map[string]string{"mode": "device", "deviceSelector": "minSize: 2Ti\nmaxSize: 1Ti"},
			refused: []string{"minSize 2Ti is larger than maxSize 1Ti"},
		},
		"every problem at once": {
			params:  map[string]string{"mode": "lvm", "wipe": "all", "colour": "red"},
			refused: []string{`"colour" is not known`, `"pool" is missing`, `unknown policy "all"`},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := provision.ParseParameters(test.params)
			if test.refused == nil {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("parameters differ (-want +got):\n%s", diff)
				}
				return
			}
			if !errors.Is(err, volume.ErrInvalid) {
				t.Fatalf("error %v is not volume.ErrInvalid", err)
			}
			for _, part := range test.refused {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("message %q does not say %q", err, part)
				}
			}
		})
	}
}

// Whatever a class says, what is accepted is a complete and allowed wish, and what
// is refused says why.
func FuzzParseParameters(f *testing.F) {
	f.Add(`{"mode":"lvm","pool":"fast"}`)
	f.Add(`{"mode":"device","deviceSelector":"{\"names\":[\"a\"],\"minSize\":\"1Gi\"}"}`)
	f.Add(`{"mode":"hostpath","pool":"p","wipe":"none","csi.storage.k8s.io/fstype":"xfs"}`)
	f.Add(`{"mode":"hostpath","pool":"a, b,c","requireQuota":"true"}`)
	f.Add(`{"csi.storage.k8s.io/":"","":"x","mo de":"\u0000"}`)
	f.Fuzz(func(t *testing.T, text string) {
		params := map[string]string{}
		if json.Unmarshal([]byte(text), &params) != nil {
			return // not of the form that reaches us
		}
		got, err := provision.ParseParameters(params)
		if err != nil {
			if err.Error() == "" || !errors.Is(err, volume.ErrInvalid) {
				t.Fatalf("refused without a reason: %#v", err)
			}
			return
		}
		if !slices.Contains([]berth.Mode{berth.ModeLVM, berth.ModeDevice, berth.ModeHostpath}, got.Mode) {
			t.Errorf("accepted mode %q", got.Mode)
		}
		if (len(got.Pools) == 0) != (got.Mode == berth.ModeDevice) || slices.Contains(got.Pools, "") {
			t.Errorf("accepted pools %q in mode %s", got.Pools, got.Mode)
		}
		if (got.FSType == "") != (got.Mode == berth.ModeHostpath) {
			t.Errorf("accepted filesystem %q in mode %s", got.FSType, got.Mode)
		}
		if got.Wipe == "" || got.DeviceSelector != nil && got.Mode != berth.ModeDevice {
			t.Errorf("accepted %+v", got)
		}
		for key := range params {
			if !slices.Contains([]string{"mode", "pool", "csi.storage.k8s.io/fstype", "mkfsOptions", "wipe", "encryption", "requireQuota", "deviceSelector"}, key) {
				t.Errorf("accepted key %q", key)
			}
		}
	})
}
