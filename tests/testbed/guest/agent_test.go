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
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAgent answers as qemu-ga does, and really runs the commands, here.
type fakeAgent struct {
	mu       sync.Mutex
	commands map[int]*fakeCommand
	files    map[int]*os.File
	started  [][]string
	// garbage is sent before the first answer of each connection, as an answer
	// that an earlier client did not wait for is.
	garbage string
	// mute makes it answer nothing, as a guest that hangs.
	mute bool
	// delay of the answer to a start.
	delay time.Duration
}

type fakeCommand struct {
	*exec.Cmd
	out, err bytes.Buffer
	done     chan struct{}
}

func startFakeAgent(t *testing.T) (*fakeAgent, Agent) {
	return startFakeAgentAs(t, "", false)
}

func startFakeAgentAs(t *testing.T, garbage string, mute bool) (*fakeAgent, Agent) {
	f := &fakeAgent{garbage: garbage, mute: mute, commands: map[int]*fakeCommand{}, files: map[int]*os.File{}}
	return f, Agent{Dir: serve(t, AgentSocket, f.handle)}
}

func (f *fakeAgent) handle(conn net.Conn, lines *bufio.Reader) {
	io.WriteString(conn, f.garbage)
	for {
		r, ok := receiveRequest(lines)
		if !ok {
			return
		}
		if f.mute {
			continue
		}
		f.mu.Lock()
		answer := f.execute(r)
		f.mu.Unlock()
		if r.Execute == "guest-sync-delimited" {
			conn.Write([]byte{delimiter})
		}
		send(conn, answer)
	}
}

func (f *fakeAgent) execute(r request) object {
	var a struct {
		ID     int      `json:"id"`
		Path   string   `json:"path"`
		Arg    []string `json:"arg"`
		Input  []byte   `json:"input-data"`
		PID    int      `json:"pid"`
		Handle int      `json:"handle"`
		Buffer string   `json:"buf-b64"`
	}
	json.Unmarshal(r.Arguments, &a)
	switch r.Execute {
	case "guest-sync-delimited":
		return object{"return": a.ID}
	case "guest-ping":
		return object{"return": object{}}
	case "guest-exec":
		c := &fakeCommand{Cmd: exec.Command(a.Path, a.Arg...), done: make(chan struct{})}
		c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(a.Input), &c.out, &c.err
		if err := c.Start(); err != nil {
			return refuse("Guest agent command failed, error was 'Failed to execute child process'")
		}
		f.started = append(f.started, append([]string{a.Path}, a.Arg...))
		f.commands[c.Process.Pid] = c
		go func() { c.Wait(); close(c.done) }()
		<-time.After(f.delay)
		return object{"return": object{"pid": c.Process.Pid}}
	case "guest-exec-status":
		c, there := f.commands[a.PID]
		if !there {
			return refuse(fmt.Sprintf("PID %d does not exist", a.PID))
		}
		select {
		case <-c.done:
		default:
			return object{"return": object{"exited": false}}
		}
		status := object{"exited": true, "out-data": c.out.Bytes(), "err-data": c.err.Bytes()}
		if code := c.ProcessState.ExitCode(); code >= 0 {
			status["exitcode"] = code
		} else {
			status["signal"] = 9
		}
		return object{"return": status}
	case "guest-file-open":
		file, err := os.Create(a.Path)
		if err != nil {
			return refuse(err.Error())
		}
		handle := 1000 + len(f.files)
		f.files[handle] = file
		return object{"return": handle}
	case "guest-file-write":
		content, err := base64.StdEncoding.DecodeString(a.Buffer)
		if err != nil {
			return refuse(err.Error())
		}
		n, err := f.files[a.Handle].Write(content)
		if err != nil {
			return refuse(err.Error())
		}
		return object{"return": object{"count": n, "eof": false}}
	case "guest-file-close":
		f.files[a.Handle].Close()
		return object{"return": object{}}
	}
	return refuse("The command " + r.Execute + " has not been found")
}

func TestExec(t *testing.T) {
	t.Parallel()
	for name, garbage := range map[string]string{
		"clean line":              "",
		"rest of another's":       `{"return": {"pid": 1}}` + "\n",
		"rest with the delimiter": "half an ans\xff{\"return\": 1}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, agent := startFakeAgentAs(t, garbage, false)
			if err := agent.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			result, err := agent.Exec(t.Context(), []string{"sh", "-c", "cat; echo oops >&2; exit 3"}, []byte("in\x00put"))
			if err != nil || result.ExitCode != 3 || string(result.Stdout) != "in\x00put" || string(result.Stderr) != "oops\n" {
				t.Errorf("exec = %+v, %v", result, err)
			}
			if result, err := agent.Exec(t.Context(), []string{"sh", "-c", "kill -9 $$"}, nil); err != nil || result.ExitCode != 137 {
				t.Errorf("exec of what is killed = %+v, %v", result, err)
			}
			var refused *CommandError
			if _, err := agent.Exec(t.Context(), []string{"/no/such/command"}, nil); !errors.As(err, &refused) {
				t.Errorf("exec of nothing: %v", err)
			}
			if _, err := agent.Exec(t.Context(), nil, nil); err == nil {
				t.Error("an empty command ran")
			}
		})
	}
}

func TestExecRunsManyAtOnce(t *testing.T) {
	t.Parallel()
	_, agent := startFakeAgent(t)
	var group sync.WaitGroup
	for n := range 10 {
		group.Go(func() {
			want := fmt.Sprint(n)
			result, err := agent.Exec(t.Context(), []string{"sh", "-c", "sleep 0.1; printf " + want}, nil)
			if err != nil || string(result.Stdout) != want {
				t.Errorf("exec %d = %q, %v", n, result.Stdout, err)
			}
		})
	}
	group.Wait()
}

func TestExecKillsWhatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{0, 2 * time.Second} { // the answer comes before the end of the context, and after
		killsWhatNobodyWaitsFor(t, delay)
	}
}

func killsWhatNobodyWaitsFor(t *testing.T, delay time.Duration) {
	t.Helper()
	fake, agent := startFakeAgent(t)
	fake.delay = delay
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := agent.Exec(ctx, []string{"sleep", "60"}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("exec = %v", err)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if last := fake.started[len(fake.started)-1]; !slices.Equal(last[:2], []string{"kill", "-KILL"}) {
		t.Fatalf("started %v", fake.started)
	}
	for _, command := range fake.commands {
		<-command.done
	}
}

// lateContext ends some time after its deadline, as every context may: the line's own
// deadline is another timer.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

func TestExecKillsWhenTheLineEndsBeforeTheContext(t *testing.T) {
	t.Parallel()
	fake, agent := startFakeAgent(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	late := lateContext{Context: ctx, deadline: time.Now().Add(500 * time.Millisecond)}
	if _, err := agent.Exec(late, []string{"sleep", "60"}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("exec = %v", err)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if last := fake.started[len(fake.started)-1]; !slices.Equal(last[:2], []string{"kill", "-KILL"}) {
		t.Fatalf("started %v", fake.started)
	}
}

func TestCallOfAGuestThatHangs(t *testing.T) {
	t.Parallel()
	_, agent := startFakeAgentAs(t, "", true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := agent.Ping(ctx); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("ping = %v", err)
	}
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	_, agent := startFakeAgent(t)
	content := bytes.Repeat([]byte("0123456789abcde\n"), maxWrite/16*2+1)
	path := filepath.Join(t.TempDir(), "f")
	if err := agent.WriteFile(t.Context(), path, content, 0o640); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("wrote %d bytes of %d, %v", len(got), len(content), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	if err := agent.WriteFile(t.Context(), "/no/such/folder/f", content, 0o640); err == nil {
		t.Error("wrote into a folder that is not there")
	}
}
