// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// stillEnv makes the test's own program what keep-still is run as: it says what to do.
const stillEnv = "BERTH_TEST_STILL"

func TestMain(m *testing.M) {
	if what := os.Getenv(stillEnv); what != "" && len(os.Args) == 2 && os.Args[1] == keepStillCommand {
		os.Exit(keepStill(os.Stdin, os.Stdout, func(ctx context.Context, root string, i lvm.Instant) error {
			switch what {
			case "taken":
				if root != "/host" || !reflect.DeepEqual(i, someInstant()) {
					return fmt.Errorf("asked for %q, %+v", root, i)
				}
				return nil
			case "killed":
				_ = os.Stdout.Close()
				os.Exit(137)
			case "over":
				return fmt.Errorf("%w: %w", dm.ErrInstantOver, volume.ErrBusy)
			case "busy":
				return fmt.Errorf("lock volume group vg: %w", volume.ErrBusy)
			}
			return errors.New("the kernel says no")
		}))
	}
	os.Exit(m.Run())
}

func someInstant() lvm.Instant {
	return lvm.Instant{
		GroupName: "vg", GroupUUID: "u", Seqno: 7, Devices: []string{"/dev/vdb"}, PoolUUID: "p",
		Copies: []lvm.InstantCopy{{OriginUUID: "o", SnapshotUUID: "s", Origin: 1, Snapshot: 2}},
	}
}

// What the process of its own says comes back as it was said.
func TestStillness(t *testing.T) {
	for what, want := range map[string]error{"taken": nil, "over": dm.ErrInstantOver, "busy": volume.ErrBusy} {
		t.Setenv(stillEnv, what)
		if err := (stillness{root: "/host"}).Take(t.Context(), someInstant()); !errors.Is(err, want) {
			t.Errorf("%s: Take = %v, want %v", what, err, want)
		}
	}
	for what, says := range map[string]string{"other": "the kernel says no", "killed": "137"} {
		t.Setenv(stillEnv, what)
		if err := (stillness{root: "/host"}).Take(t.Context(), someInstant()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: Take = %v, want that it says %q", what, err, says)
		}
	}
}

// The instant ends when the agent does.
func TestKeepStillEndsWithTheAgent(t *testing.T) {
	in, agent := io.Pipe()
	var out bytes.Buffer
	done := make(chan int)
	go func() {
		done <- keepStill(in, &out, func(ctx context.Context, _ string, _ lvm.Instant) error {
			if err := agent.Close(); err != nil {
				return err
			}
			<-ctx.Done()
			return fmt.Errorf("%w: %w", dm.ErrInstantOver, context.Cause(ctx))
		})
	}()
	if _, err := agent.Write([]byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 || !strings.Contains(out.String(), `"kind":"over"`) || !strings.Contains(out.String(), errAgentGone.Error()) {
		t.Errorf("exit code %d, answer %q", code, out.String())
	}
}

func TestKeepStillWithoutRequest(t *testing.T) {
	var out bytes.Buffer
	code := keepStill(strings.NewReader("nonsense"), &out, func(context.Context, string, lvm.Instant) error {
		t.Error("it was taken")
		return nil
	})
	if code != 0 || !strings.Contains(out.String(), "read what is to be taken") {
		t.Errorf("exit code %d, answer %q", code, out.String())
	}
}
