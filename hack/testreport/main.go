// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testreport runs the stages of `make test` and counts what they ran.
//
//	testreport run --name STAGE -- go test ARGS...   runs go test and counts its tests
//	testreport ginkgo --name STAGE --report FILE     counts the specs of a Ginkgo JSON report
//	testreport sum STAGE [STAGE]                        prints all stages and one closing line
//
// Results are kept in build/test/STAGE.json between the calls. A stage that left
// no result counts as failed, so that a suite that did not run cannot pass.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"
)

const usage = `usage:
  testreport run --name STAGE -- go test ARGS...
  testreport ginkgo --name STAGE --report FILE
  testreport sum STAGE [STAGE]`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	flags := pflag.NewFlagSet(os.Args[1], pflag.ExitOnError)
	dir := flags.String("dir", filepath.Join("build", "test"), "folder of the results")
	name := flags.String("name", "", "name of the stage")
	report := flags.String("report", "", "JSON report that Ginkgo wrote")
	_ = flags.Parse(os.Args[2:]) // ExitOnError

	var err error
	switch os.Args[1] {
	case "run":
		err = run(*dir, *name, flags.Args())
	case "ginkgo":
		err = ginkgo(*dir, *name, *report)
	case "sum":
		err = sum(os.Stdout, *dir, flags.Args())
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run starts go test with -json, shows what plain go test shows and stores the
// count. It fails when a test failed or nothing was tested.
func run(dir, name string, args []string) error {
	if name == "" || len(args) < 3 || args[0] != "go" || args[1] != "test" {
		return errors.New(usage)
	}
	command := exec.Command(args[0], slices.Concat([]string{"test", "-json"}, args[2:])...)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	started := time.Now()
	if err := command.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	result, readErr := count(out, os.Stdout)
	waitErr := command.Wait()

	result.Seconds = time.Since(started).Seconds()
	if waitErr != nil && result.Failed == 0 {
		// go test could not even start a test; its words are on stderr.
		result.Failed++
		result.Failures = append(result.Failures, "go test: "+waitErr.Error())
	}
	if err := result.store(dir, name); err != nil {
		return err
	}
	if readErr != nil {
		return fmt.Errorf("read the output of go test: %w", readErr)
	}
	return result.verdict(name)
}
