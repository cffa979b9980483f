// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// Agent runs commands in a guest through the QEMU guest agent
// (docs/interop/qemu-ga of QEMU), over a serial line: it works while the
// guest's network does not. Every request opens the line for itself, so that
// many may use an agent at once, from many processes.
type Agent struct {
	// Dir is the guest's folder.
	Dir string
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr []byte
	// ExitCode is the command's status, or 128 plus the signal's number.
	ExitCode int
}

// callLimit bounds one request. The agent answers at once unless the guest is
// down or starved.
const callLimit = 30 * time.Second

// delimiter precedes the answer to guest-sync-delimited and tells the agent's
// parser to forget what came before.
const delimiter = 0xff

// call makes one request.
func (a Agent) call(ctx context.Context, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	conn, err := dial(ctx, a.Dir, AgentSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	id := rand.Int32()
	sync := fmt.Sprintf("\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id)
	if _, err := io.WriteString(conn, sync); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for { // Skip what is left of an answer that nobody waited for.
		if _, err := reader.ReadBytes(delimiter); err != nil {
			return fmt.Errorf("%s: the guest's agent does not answer: %w", command, err)
		}
		var got int32
		if err := receive(reader, "guest-sync-delimited", &got); err == nil && got == id {
			break
		}
	}
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return receive(reader, command, result)
}

// receive reads one answer.
func receive(reader *bufio.Reader, command string, result any) error {
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *CommandError   `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer.Error != nil {
		answer.Error.Command = command
		return answer.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Return, result)
}

// Ping tells whether the agent answers.
func (a Agent) Ping(ctx context.Context) error {
	return a.call(ctx, "guest-ping", nil, nil)
}

// Exec runs a command in the guest and waits for its end. The command's input
// is stdin, which may be nil. A status other than 0 is not an error; an error
// means that the command did not run or that its end was not seen. When the
// context ends, the command is killed.
func (a Agent) Exec(ctx context.Context, argv []string, stdin []byte) (Result, error) {
	if len(argv) == 0 {
		return Result{}, errors.New("run in guest: no command")
	}
	arguments := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if len(stdin) > 0 {
		arguments["input-data"] = base64.StdEncoding.EncodeToString(stdin)
	}
	var started struct {
		PID int `json:"pid"`
	}
	if err := a.insist(ctx, "guest-exec", arguments, &started); err != nil {
		return Result{}, fmt.Errorf("run %s in guest: %w", argv[0], err)
	}
	for began := time.Now(); ; {
		// A tenth of the time so far: the guest should do the command's work
		// and not answer whether it is done.
		pause := min(max(time.Since(began)/10, 5*time.Millisecond), time.Second)
		select {
		case <-ctx.Done():
			a.kill(context.WithoutCancel(ctx), started.PID)
			return Result{}, fmt.Errorf("run %s in guest: %w", argv[0], ctx.Err())
		case <-time.After(pause):
		}
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"` // base64, as encoding/json reads []byte
			Err      []byte `json:"err-data"`
			OutCut   bool   `json:"out-truncated"`
			ErrCut   bool   `json:"err-truncated"`
		}
		if err := a.call(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &status); err != nil {
			if ended(ctx) {
				continue // kill it first
			}
			return Result{}, fmt.Errorf("run %s in guest: %w", argv[0], err)
		}
		if !status.Exited {
			continue
		}
		result := Result{Stdout: status.Out, Stderr: status.Err, ExitCode: status.ExitCode}
		if status.Signal != 0 {
			result.ExitCode = 128 + status.Signal
		}
		if status.OutCut || status.ErrCut {
			return result, fmt.Errorf("run %s in guest: its output was cut off", argv[0])
		}
		return result, nil
	}
}

// ended tells whether nobody waits any more. A line that was opened with the context's
// deadline fails at that time, by a timer of its own: often a moment before the context
// says that it is over.
func ended(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
}

// startGrace is how long the answer to a start is waited for when nobody waits for
// the command any more.
const startGrace = 10 * time.Second

// insist is call, with a grace: without the number that the guest answers, nobody
// could kill what was started.
func (a Agent) insist(ctx context.Context, command string, arguments, result any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	longer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(startGrace, stop) })()
	return a.call(longer, command, arguments, result)
}

func (a Agent) kill(ctx context.Context, pid int) {
	// Best effort: the guest may be the reason why the context ended.
	a.call(ctx, "guest-exec", map[string]any{"path": "kill", "arg": []string{"-KILL", fmt.Sprint(pid)}}, nil)
}

// maxWrite keeps one request small enough for the agent's parser.
const maxWrite = 256 << 10

// WriteFile writes a file in the guest, with the mode given. It is meant for
// small files: the line carries a few MB per second.
func (a Agent) WriteFile(ctx context.Context, path string, content []byte, mode uint32) error {
	var handle int
	if err := a.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": "w"}, &handle); err != nil {
		return fmt.Errorf("write %s in guest: %w", path, err)
	}
	reader := bytes.NewReader(content)
	var failed error
	for failed == nil && reader.Len() > 0 {
		chunk := make([]byte, min(maxWrite, reader.Len()))
		reader.Read(chunk)
		var written struct {
			Count int `json:"count"`
		}
		failed = a.call(ctx, "guest-file-write", map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(chunk)}, &written)
		if failed == nil && written.Count != len(chunk) {
			failed = fmt.Errorf("wrote %d of %d bytes", written.Count, len(chunk))
		}
	}
	failed = errors.Join(failed, a.call(ctx, "guest-file-close", map[string]any{"handle": handle}, nil))
	if failed == nil {
		var result Result
		result, failed = a.Exec(ctx, []string{"chmod", fmt.Sprintf("%o", mode), path}, nil)
		if failed == nil && result.ExitCode != 0 {
			failed = fmt.Errorf("chmod: %s", bytes.TrimSpace(result.Stderr))
		}
	}
	if failed != nil {
		return fmt.Errorf("write %s in guest: %w", path, failed)
	}
	return nil
}
