// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster is a testbed: a real Kubernetes cluster on one machine, with
// its control plane in a network namespace and its nodes in virtual machines
// that have real disks. Up makes one, Open finds the running one, and the rest
// does to it what happens to machines: commands, new and lost disks, lost power
// and lost networks.
package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/netns"
)

// Errors that callers tell apart.
var (
	// ErrNotRunning means that there is no testbed in the folder.
	ErrNotRunning = errors.New("no testbed is running here: start one with 'testbed up'")
	// ErrUnknownNode means that the testbed has no node of that name.
	ErrUnknownNode = errors.New("no such node")
	// ErrUnknownDisk means that the node has no disk of that serial.
	ErrUnknownDisk = errors.New("no such disk")
	// ErrPoweredOff means that the node must be running for this.
	ErrPoweredOff = errors.New("the node is powered off")
	// ErrPoweredOn means that the node must be off for this.
	ErrPoweredOn = errors.New("the node is running")
)

// DirVariable names the folder of the testbed, instead of .testbed in the
// repository.
const DirVariable = "BERTH_TESTBED_DIR"

// Cluster is a testbed in a folder.
type Cluster struct {
	dir   string
	state state
}

// state is what is kept of a testbed in its folder, beside what each node
// keeps.
type state struct {
	CreatedAt time.Time `json:"createdAt"`
	// Complete is set when all of it was Ready once.
	Complete bool `json:"complete"`
	// Nodes are the nodes in order.
	Nodes []kube.Node `json:"nodes"`
	Accel guest.Accel `json:"accel"`
	// Programs are the built programs, name to file.
	Programs map[string]string `json:"programs"`
	// QEMU runs the nodes.
	QEMU guest.QEMU `json:"qemu"`
	// ImageDir holds what the nodes boot.
	ImageDir string `json:"imageDir"`
	// ForeignDir holds the foreign disks that each node gets a copy of.
	ForeignDir string `json:"foreignDir"`
	// Foreign are the digests that the foreign disks began with, by name.
	Foreign map[string]string `json:"foreign"`
}

// DefaultDir returns the folder of the testbed: that of DirVariable, or
// .testbed in the repository that the working folder is in.
func DefaultDir() (string, error) {
	if dir := os.Getenv(DirVariable); dir != "" {
		return filepath.Abs(dir)
	}
	repository, err := findRepository()
	if err != nil {
		return "", fmt.Errorf("%w, and %s is not set", err, DirVariable)
	}
	return filepath.Join(repository, ".testbed"), nil
}

var modulePattern = regexp.MustCompile(`(?m)^module github\.com/berth-dev/berth$`)

// findRepository returns the root of the repository.
func findRepository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && modulePattern.Match(content) {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside Berth's repository", start)
		}
	}
}

// Open returns the testbed that runs in the folder (DefaultDir if empty), or
// ErrNotRunning.
func Open(dir string) (*Cluster, error) {
	if dir == "" {
		var err error
		if dir, err = DefaultDir(); err != nil {
			return nil, err
		}
	}
	c := &Cluster{dir: dir}
	content, err := os.ReadFile(c.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(content, &c.state); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.statePath(), err)
	}
	if !c.state.Complete || !c.Namespace().Exists() {
		return nil, ErrNotRunning
	}
	return c, nil
}

// Dir is the testbed's folder.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the administrator's kubeconfig. Its server is reached only from
// within the testbed's network: see Namespace.
func (c *Cluster) Kubeconfig() string { return c.files().Kubeconfig(kube.Admin) }

// Namespace is the testbed's network namespace. Its name contains a hash of
// the folder, so that testbeds of several checkouts do not meet.
func (c *Cluster) Namespace() netns.Namespace {
	sum := sha256.Sum256([]byte(c.dir))
	return netns.Namespace{Name: "berth-" + hex.EncodeToString(sum[:])[:10]}
}

// Program is the path of a built program, as "kubectl".
func (c *Cluster) Program(name string) string { return c.state.Programs[name] }

// Nodes are the names of the nodes.
func (c *Cluster) Nodes() []string {
	names := make([]string, 0, len(c.state.Nodes))
	for _, node := range c.state.Nodes {
		names = append(names, node.Name)
	}
	return names
}

// CreatedAt is when the testbed was started.
func (c *Cluster) CreatedAt() time.Time { return c.state.CreatedAt }

// Accel is how the nodes run.
func (c *Cluster) Accel() guest.Accel { return c.state.Accel }

func (c *Cluster) runDir() string             { return filepath.Join(c.dir, "run") }
func (c *Cluster) statePath() string          { return filepath.Join(c.runDir(), "cluster.json") }
func (c *Cluster) files() kube.Files          { return kube.Files(filepath.Join(c.runDir(), "pki")) }
func (c *Cluster) pidDir() string             { return filepath.Join(c.runDir(), "pid") }
func (c *Cluster) nodeDir(n string) string    { return filepath.Join(c.runDir(), "nodes", n) }
func (c *Cluster) logDir() string             { return filepath.Join(c.dir, "log") }
func (c *Cluster) logPath(n string) string    { return filepath.Join(c.logDir(), n+".log") }
func (c *Cluster) pidPath(n string) string    { return filepath.Join(c.pidDir(), n+".pid") }
func (c *Cluster) store() *artifact.Store     { return &artifact.Store{Dir: filepath.Join(c.dir, "cache")} }
func (c *Cluster) agent(n string) guest.Agent { return guest.Agent{Dir: c.nodeDir(n)} }

// save writes the state so that a reader sees all of it or the one before.
func (c *Cluster) save() error { return writeJSON(c.statePath(), c.state) }

func writeJSON(path string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// node returns the node of a name.
func (c *Cluster) node(name string) (kube.Node, error) {
	for _, node := range c.state.Nodes {
		if node.Name == name {
			return node, nil
		}
	}
	return kube.Node{}, fmt.Errorf("%s: %w: the testbed has %s", name, ErrUnknownNode, strings.Join(c.Nodes(), ", "))
}

// lock keeps other commands that start or stop this testbed out, until the
// returned function is called.
func (c *Cluster) lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	return lockFile(filepath.Join(c.dir, "lock"), "another command is starting or stopping this testbed")
}

// changeLimit is how long a command waits for another one that changes the same node.
const changeLimit = time.Minute

// lockNode keeps other commands that change this node out, and waits for one that is at
// it. It fails for a node that the testbed does not have.
func (c *Cluster) lockNode(ctx context.Context, node string) (unlock func(), err error) {
	if _, err := c.node(node); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	for tick := time.Tick(50 * time.Millisecond); ; {
		unlock, err := lockFile(filepath.Join(c.nodeDir(node), "lock"), "another command is changing "+node)
		if !errors.Is(err, errLocked) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick:
		}
	}
}

// errLocked: somebody else has the lock.
var errLocked = errors.New("it is locked")

func lockFile(path, held string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", held, errLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

// Exec runs a command on a node, through a line that needs no network, and
// waits for its end. A status other than 0 is not an error.
func (c *Cluster) Exec(ctx context.Context, node string, argv ...string) (guest.Result, error) {
	return c.ExecInput(ctx, node, nil, argv...)
}

// ExecInput is Exec of a command that reads stdin.
func (c *Cluster) ExecInput(ctx context.Context, node string, stdin []byte, argv ...string) (guest.Result, error) {
	if err := c.needPower(node); err != nil {
		return guest.Result{}, err
	}
	result, err := c.agent(node).Exec(ctx, argv, stdin)
	if err != nil {
		return result, fmt.Errorf("%s: %w", node, err)
	}
	return result, nil
}
