// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// keepStillCommand is the command that this program runs itself with, for the moment in
// which volumes stand still: the agent may be killed then, and they go on all the same.
const keepStillCommand = "keep-still"

// stillRequest is what the agent writes to the standard input of that process, and
// stillAnswer what it reads from its output.
type stillRequest struct {
	Root    string      `json:"root"`
	Instant lvm.Instant `json:"instant"`
}

type stillAnswer struct {
	// Kind is the name of a sentinel of stillErrors, and Error what happened; both are
	// empty when the instant was taken.
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// stillErrors are the sentinels that an answer can carry.
var stillErrors = map[string]error{
	"over": dm.ErrInstantOver, "busy": volume.ErrBusy, "in-use": volume.ErrInUse, "identity": volume.ErrIdentity,
	"pool-unavailable": volume.ErrPoolUnavailable, "not-found": volume.ErrNotFound, "invalid": volume.ErrInvalid,
}

// keepStill takes one instant. It ends it when its standard input ends, for then the agent
// is gone and nobody would hear the answer.
func keepStill(in io.Reader, out io.Writer, take func(ctx context.Context, root string, i lvm.Instant) error) int {
	// Who stops the agent's pod must not stop this one in between.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	var request stillRequest
	decoder := json.NewDecoder(in)
	if err := decoder.Decode(&request); err != nil {
		return answerStill(out, fmt.Errorf("read what is to be taken: %w", err))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		_, err := io.Copy(io.Discard, in)
		cancel(errors.Join(errAgentGone, err))
	}()
	return answerStill(out, take(ctx, request.Root, request.Instant))
}

var errAgentGone = errors.New("the agent has ended")

func answerStill(out io.Writer, cause error) int {
	var answer stillAnswer
	if cause != nil {
		answer.Error = cause.Error()
		for kind, sentinel := range stillErrors {
			if errors.Is(cause, sentinel) && (answer.Kind == "" || kind == "over") {
				answer.Kind = kind
			}
		}
	}
	if err := json.NewEncoder(out).Encode(answer); err != nil {
		return 1
	}
	return 0
}

// stillness is lvm.Instants in a process of its own.
type stillness struct{ root string }

// stillPatience is how long the process may take beyond the time in which volumes stand
// still: it waits for lvm's lock before, and starts slowly on a busy node.
const stillPatience = 25 * time.Second

// Take implements lvm.Instants.
func (s stillness) Take(ctx context.Context, i lvm.Instant) error {
	ctx, cancel := context.WithTimeout(ctx, lvm.InstantLimit+stillPatience)
	defer cancel()
	request, err := json.Marshal(stillRequest{s.root, i})
	if err != nil {
		return fmt.Errorf("write down an instant of %s: %w", i.GroupName, err)
	}
	output, err := hostexec.RunSelf(ctx, append(request, '\n'), keepStillCommand)
	if err != nil {
		return fmt.Errorf("take an instant of %s: %w", i.GroupName, err)
	}
	var answer stillAnswer
	if err := json.Unmarshal(output, &answer); err != nil {
		return fmt.Errorf("take an instant of %s: what %s says: %w", i.GroupName, keepStillCommand, err)
	}
	if answer.Error == "" {
		return nil
	}
	if sentinel, known := stillErrors[answer.Kind]; known {
		return fmt.Errorf("%w: %s", sentinel, answer.Error)
	}
	return errors.New(answer.Error)
}

func takeInstant(ctx context.Context, root string, i lvm.Instant) error {
	return lvm.HostInstants{Root: root}.Take(ctx, i)
}

func runKeepStill() int { return keepStill(os.Stdin, os.Stdout, takeInstant) }
