// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command vulncheck runs govulncheck, as hack/vuln pins it, on what Berth ships: it fails
// for a known vulnerability in code that is called. The vulnerability database is asked
// for over the network; where it cannot be reached the command says loudly that nothing
// was checked, and does not fail.
//
//	go run ./hack/vulncheck
//
// GOVULNDB names another database, as for govulncheck: a URL, also file:///path.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	defaultDatabase = "https://vuln.go.dev"
	// patience is how long the database may take to say how old it is.
	patience = 20 * time.Second
)

func main() {
	err := check(context.Background(), cmp.Or(os.Getenv("GOVULNDB"), defaultDatabase), govulncheck, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vulncheck:", err)
		os.Exit(1)
	}
}

// check runs govulncheck if the database answers.
func check(ctx context.Context, database string, run func(ctx context.Context, database string) error, out io.Writer) error {
	modified, err := lastChange(ctx, database)
	if err != nil {
		fmt.Fprintf(out, `
    ****************************************************************
    NOT CHECKED for known vulnerabilities: the database is unreachable
    %v
    Run make verify-vulnerabilities where it can be reached, or set
    GOVULNDB to a copy of it.
    ****************************************************************

`, err)
		return nil
	}
	fmt.Fprintf(out, "    the database %s is of %s\n", database, modified.Format(time.DateOnly))
	return run(ctx, database)
}

// lastChange is when the database was changed last (go.dev/doc/security/vuln/database, index/db.json).
func lastChange(ctx context.Context, database string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(database, "/")+"/index/db.json", nil)
	if err != nil {
		return time.Time{}, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("get %s: %s", request.URL, response.Status)
	}
	var index struct {
		Modified time.Time `json:"modified"`
	}
	if err := json.NewDecoder(response.Body).Decode(&index); err != nil {
		return time.Time{}, fmt.Errorf("read %s: %w", request.URL, err)
	}
	return index.Modified, nil
}

// govulncheck builds the pinned tool and runs it on the commands, with the tags of the
// image. It exits with 3 where it has found something.
func govulncheck(ctx context.Context, database string) error {
	tool, err := filepath.Abs("build/tools/govulncheck")
	if err != nil {
		return err
	}
	for _, command := range [][]string{
		{"go", "build", "-C", "hack/vuln", "-o", tool, "golang.org/x/vuln/cmd/govulncheck"},
		{tool, "-db", database, "-tags", "grpcnotrace", "./cmd/..."},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run %s: %w", filepath.Base(command[0]), err)
		}
	}
	return nil
}
