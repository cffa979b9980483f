// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const mib = 1 << 20

func spec(n int, sizeBytes int64) volume.Spec {
	return volume.Spec{ID: volumetest.ID(n), Name: fmt.Sprintf("pvc-%d", n), SizeBytes: sizeBytes, Access: volume.AccessBlock}
}

// write puts bytes on the disk of this serial.
func write(t *testing.T, host *devicetest.Host, serial string, at int64, data string) {
	t.Helper()
	f, err := os.OpenFile(pathOf(t, host, serial), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(data), at)
	must(t, err)
	must(t, f.Close())
}

func content(t *testing.T, host *devicetest.Host, serial string) string {
	t.Helper()
	data, err := os.ReadFile(pathOf(t, host, serial))
	must(t, err)
	return string(data)
}

func pathOf(t *testing.T, host *devicetest.Host, serial string) string {
	t.Helper()
	for _, d := range host.Disks() {
		if d.Serial == serial {
			return d.Path
		}
	}
	t.Fatalf("no disk %s", serial)
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreateTakesTheSmallestThatFits(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, 4*mib, mib, 3*mib, 2*mib))
	for i, test := range []struct {
		sizeBytes int64
		want      string
	}{
		{2*mib + 1, "bd-disk-2"}, {1, "bd-disk-1"}, {1, "bd-disk-3"}, {4 * mib, "bd-disk-0"},
	} {
		rec, err := n.backend.Create(t.Context(), spec(i, test.sizeBytes))
		must(t, err)
		if rec.Device.Name != test.want || rec.SizeBytes != rec.Device.SizeBytes {
			t.Errorf("Create of %d bytes took %+v of %d bytes, want %s whole", test.sizeBytes, *rec.Device, rec.SizeBytes, test.want)
		}
	}
	_, err := n.backend.Create(t.Context(), spec(9, 1))
	if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "no free disk") {
		t.Errorf("Create without a disk = %v, want ErrNoSpace in words", err)
	}
}

// Equal disks are spread over: volumes do not all go for the same one first.
func TestCreateSpreadsOverEqualDisks(t *testing.T) {
	t.Parallel()
	first := map[string]bool{}
	for i := range 32 {
		n := newNode(t, devicetest.NewFileHost(t, mib, mib, mib, mib))
		rec, err := n.backend.Create(t.Context(), spec(i, 1))
		must(t, err)
		first[rec.Device.Name] = true
	}
	if len(first) != 4 {
		t.Errorf("32 volumes began with %v of 4 equal disks", first)
	}
}

// behind is a registry whose disks are behind controllers.
type behind struct {
	device.Registry
	controllers map[string]string // by the disk's name
}

func (r behind) Candidates(ctx context.Context) ([]volume.Disk, error) {
	disks, err := r.Registry.Candidates(ctx)
	for i := range disks {
		disks[i].Controller = r.controllers[disks[i].Name]
	}
	return disks, err
}

func (r behind) Claims(ctx context.Context) ([]device.Claimed, error) {
	claims, err := r.Registry.Claims(ctx)
	for i := range claims {
		claims[i].Controller = r.controllers[claims[i].Name]
	}
	return claims, err
}

// Equal disks are taken in turn from the controllers they are behind; a smaller one
// goes first wherever it is.
func TestCreateSpreadsOverControllers(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib, 2*mib, 2*mib, 2*mib))
		r := behind{n.registry, map[string]string{
			"bd-disk-0": "0000:00:01.0",
			"bd-disk-1": "0000:00:01.0", "bd-disk-2": "0000:00:01.0", "bd-disk-3": "0000:00:02.0", "bd-disk-4": "0000:00:02.0",
		}}
		b := device.New(device.Options{Registry: r, Disks: n.host.Opener(), Log: quiet})
		var got []string
		for j := range 5 {
			rec, err := b.Create(t.Context(), spec(10*i+j, 1))
			must(t, err)
			got = append(got, r.controllers[rec.Device.Name])
		}
		want := []string{"0000:00:01.0", "0000:00:02.0"} // the small one, then the idle controller
		if !slices.Equal(got[:2], want) || got[2] == got[3] {
			t.Errorf("round %d: taken behind %v, want %v and then one of each", i, got, want)
		}
	}
}

func TestCreateSelects(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib, 3*mib))
	only := func(serial string) func(volume.Disk) bool {
		return func(d volume.Disk) bool { return d.Serial == serial }
	}
	s := spec(1, 1)
	s.SelectDisk = only("disk-1")
	c, err := n.backend.CapacityOf(t.Context(), s.SelectDisk)
	must(t, err)
	if c.MaxVolumeBytes != 2*mib || c.FreeBytes != 2*mib {
		t.Errorf("CapacityOf the selector = %+v, want the one disk", c)
	}
	rec, err := n.backend.Create(t.Context(), s)
	must(t, err)
	if rec.Device.Name != "bd-disk-1" {
		t.Errorf("Create took %s, selected was bd-disk-1", rec.Device.Name)
	}
	s = spec(2, 1)
	s.SelectDisk = only("disk-7")
	if _, err := n.backend.Create(t.Context(), s); !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "selector") {
		t.Errorf("Create by a selector that matches nothing = %v, want ErrNoSpace that says so", err)
	}
}

// A disk that nothing but its place tells apart is taken only when asked for.
func TestCreateLeavesWeakDisks(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib))
	b := device.New(device.Options{Registry: weakRegistry{n.registry}, Disks: n.host.Opener(), Log: quiet})
	if c, err := b.Capacity(t.Context()); err != nil || c.Fits(1) {
		t.Errorf("Capacity = %+v, %v, want no room", c, err)
	}
	if _, err := b.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("Create = %v, want ErrNoSpace", err)
	}
	s := spec(1, 1)
	s.SelectDisk = func(volume.Disk) bool { return true }
	if _, err := b.Create(t.Context(), s); err != nil {
		t.Errorf("Create where weak disks are allowed: %v", err)
	}
}

type weakRegistry struct{ *devicetest.Registry }

func (r weakRegistry) Candidates(ctx context.Context) ([]volume.Disk, error) {
	disks, err := r.Registry.Candidates(ctx)
	for i := range disks {
		disks[i].Weak = true
	}
	return disks, err
}

// A disk with anything on it is passed over, whatever the registry thinks of it,
// and is the same bit by bit afterwards (I2).
func TestCreatePassesOverWhatIsNotBlank(t *testing.T) {
	for name, newHost := range map[string]func(testing.TB, ...int64) *devicetest.Host{
		"loop devices": devicetest.NewLoopHost, "files": devicetest.NewFileHost,
	} {
		t.Run(name, func(t *testing.T) {
			host := newHost(t, 10*mib, 10*mib, 10*mib, 10*mib, 11*mib)
			n := newNode(t, host)
			foreign := map[string]int64{
				"disk-0": 1024 + 56, // an ext4 magic
				"disk-1": 10*mib - 512,
				"disk-2": 0,
				"disk-3": 3 * mib,
			}
			before := map[string]string{}
			for serial, at := range foreign {
				write(t, host, serial, at, "\x53\xef")
				before[serial] = content(t, host, serial)
			}
			rec, err := n.backend.Create(t.Context(), spec(1, 1))
			must(t, err)
			if rec.Device.Name != "bd-disk-4" {
				t.Fatalf("Create took %s, which is not blank", rec.Device.Name)
			}
			_, err = n.backend.Create(t.Context(), spec(2, 1))
			if !errors.Is(err, volume.ErrNoSpace) || errors.Is(err, volume.ErrNotBlank) || !strings.Contains(err.Error(), "offset") {
				t.Fatalf("Create on disks that hold data = %v, want ErrNoSpace that says where the data is", err)
			}
			claims, err := n.registry.Claims(t.Context())
			must(t, err)
			if len(claims) != 1 {
				t.Errorf("claims are %v, want the one of volume 1", claims)
			}
			if released, err := n.registry.Released(t.Context()); err != nil || len(released) != 0 {
				t.Errorf("released are %v, %v: a foreign disk would be wiped", released, err)
			}
			for serial := range foreign {
				if content(t, host, serial) != before[serial] {
					t.Errorf("%s has changed", serial)
				}
			}
		})
	}
}

// A claim that stands is the volume's, with what the volume has written by then.
func TestCreateAgainAfterTheVolumeWasUsed(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, 10*mib))
	rec, err := n.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	write(t, n.host, "disk-0", 0, "a database")
	again, err := n.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	if !again.SameStorage(rec) || !strings.HasPrefix(content(t, n.host, "disk-0"), "a database") {
		t.Errorf("Create again returned %+v", again)
	}
}

// The candidates may be of yesterday: a name that belongs to another disk by now
// does not make that disk the volume.
func TestCreateByAStaleName(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, 2*mib, 3*mib))
	stale, err := n.registry.Candidates(t.Context())
	must(t, err)
	// The two names are exchanged.
	stale[0].Path, stale[1].Path = stale[1].Path, stale[0].Path
	b := device.New(device.Options{Registry: staleRegistry{n.registry, stale}, Disks: n.host.Opener(), Log: quiet})
	_, err = b.Create(t.Context(), spec(1, 1))
	if !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create by exchanged names = %v, want none taken", err)
	}
	if claims, err := n.registry.Claims(t.Context()); err != nil || len(claims) != 0 {
		t.Fatalf("claims are %v, %v", claims, err)
	}
}

type staleRegistry struct {
	*devicetest.Registry
	candidates []volume.Disk
}

func (r staleRegistry) Candidates(context.Context) ([]volume.Disk, error) { return r.candidates, nil }

// A claim that turns out to be on another disk is taken back without a wipe.
func TestCreateAbandonsAClaimOnAnotherDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib))
	b := device.New(device.Options{Registry: liarRegistry{n.registry}, Disks: n.host.Opener(), Log: quiet})
	if _, err := b.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create = %v, want ErrNoSpace", err)
	}
	if claims, err := n.registry.Claims(t.Context()); err != nil || len(claims) != 0 {
		t.Errorf("claims are %v, %v, want it abandoned", claims, err)
	}
	if released, err := n.registry.Released(t.Context()); err != nil || len(released) != 0 {
		t.Errorf("released are %v, %v, want no wipe", released, err)
	}
}

type liarRegistry struct{ *devicetest.Registry }

func (r liarRegistry) Claim(ctx context.Context, name string, o device.Owner) (device.Claimed, error) {
	c, err := r.Registry.Claim(ctx, name, o)
	c.IdentityValue = "another"
	return c, err
}

// After a claim whose outcome is unknown no other disk is tried: the volume would
// have two.
func TestCreateStopsAtAnUnknownClaim(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib, mib, mib))
	lost := errors.New("the API server did not answer")
	b := device.New(device.Options{Registry: lossyRegistry{n.registry, lost}, Disks: n.host.Opener(), Log: quiet})
	_, err := b.Create(t.Context(), spec(1, 1))
	if !errors.Is(err, lost) || errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create = %v, want the error of the claim", err)
	}
	claims, err := n.registry.Claims(t.Context())
	must(t, err)
	if len(claims) != 1 {
		t.Fatalf("%d disks are claimed", len(claims))
	}
	rec, err := n.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	if rec.Device.Name != claims[0].Name {
		t.Errorf("Create again took %s, claimed was %s", rec.Device.Name, claims[0].Name)
	}
}

// lossyRegistry claims, and loses the answer.
type lossyRegistry struct {
	*devicetest.Registry
	lost error
}

func (r lossyRegistry) Claim(ctx context.Context, name string, o device.Owner) (device.Claimed, error) {
	if _, err := r.Registry.Claim(ctx, name, o); err != nil {
		return device.Claimed{}, err
	}
	return device.Claimed{}, r.lost
}

// 200 volumes and a pool go for 20 disks at once: each disk has one holder.
func TestCreateRaces(t *testing.T) {
	t.Parallel()
	sizes := make([]int64, 20)
	for i := range sizes {
		sizes[i] = mib
	}
	n := newNode(t, devicetest.NewFileHost(t, sizes...))
	var mu sync.Mutex
	holders := map[string]string{}
	hold := func(disk, owner string) {
		mu.Lock()
		defer mu.Unlock()
		if other := holders[disk]; other != "" {
			t.Errorf("disk %s went to %s and to %s", disk, other, owner)
		}
		holders[disk] = owner
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			rec, err := n.backend.Create(t.Context(), spec(i, 1))
			switch {
			case err == nil:
				hold(rec.Device.Name, volumetest.ID(i))
			case !errors.Is(err, volume.ErrNoSpace):
				t.Errorf("Create: %v", err)
			}
		})
	}
	wg.Go(func() {
		for i := range sizes {
			c, err := n.registry.Claim(t.Context(), fmt.Sprintf("bd-disk-%d", i), device.Owner{UID: "pool", Name: "fast", Kind: device.OwnerPool})
			switch {
			case err == nil:
				hold(c.Name, "pool")
			case !errors.Is(err, volume.ErrBusy):
				t.Errorf("Claim: %v", err)
			}
		}
	})
	wg.Wait()
	if len(holders) != len(sizes) {
		t.Errorf("%d of %d disks found a holder", len(holders), len(sizes))
	}
	found, err := n.backend.List(t.Context())
	must(t, err)
	for _, f := range found {
		if holders[f.Record.Device.Name] != f.ID {
			t.Errorf("List shows %s on %s, which %s holds", f.ID, f.Record.Device.Name, holders[f.Record.Device.Name])
		}
	}
}

// A call does not say that there is no room because another call is at the last
// disk: that one may yet leave it.
func TestCreateWaitsForACallThatIsAtTheLastDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib))
	gate := &gateOpener{Opener: n.host.Opener(), entered: make(chan struct{}), leave: make(chan struct{})}
	b := device.New(device.Options{Registry: n.registry, Disks: gate, Log: quiet})

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := b.Create(ctx, spec(1, 1))
		first <- err
	}()
	<-gate.entered // the first call is at the disk
	second := make(chan error, 1)
	go func() {
		_, err := b.Create(t.Context(), spec(2, 1))
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("the second call ended with %v while the first was at the disk", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	close(gate.leave)
	if err := <-first; err == nil {
		t.Fatal("the first call succeeded though it was cancelled")
	}
	<-gate.entered
	if err := <-second; err != nil {
		t.Fatalf("the second call ended with %v, want the disk that the first has left", err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// What a target of the node's has written to a disk that it exports is not in the page
// cache, which its open descriptor keeps.
func TestBlankIsReadPastTheCache(t *testing.T) {
	host := devicetest.NewLoopHost(t, 16*mib)
	path := pathOf(t, host, "disk-0")
	target, err := block.OpenReadOnly(path)
	must(t, err)
	defer target.Close()
	if _, blank, err := block.Blank(target, 16*mib); !blank || err != nil { // and so fill the cache
		t.Fatalf("a new disk: %t, %v", blank, err)
	}
	host.WriteBehind(t, "disk-0", 1*mib)
	disk, err := host.Opener().Open(t.Context(), path)
	must(t, err)
	defer disk.Close()
	if err := disk.Blank(); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("Blank = %v, want ErrNotBlank", err)
	}
}
