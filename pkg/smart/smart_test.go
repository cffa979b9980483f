// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package smart_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/smart"
	"github.com/berth-dev/berth/pkg/volume"
)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		level smart.Level
		words string
	}{
		"nvme-good":     {smart.Good, "it says that it is well"},
		"nvme-warnings": {smart.Failing, "its spare blocks are below the threshold; it is unreliable after media or internal errors; it has made itself read-only"},
		"nvme-hot":      {smart.Worn, "it is outside of its range of temperature"},
		"nvme-worn":     {smart.Worn, "it has had the writes that it was made for; 2 blocks could not be read correctly"},
		"ata-good":      {smart.Good, "it says that it is well"},
		"ata-pending":   {smart.Worn, "8 sectors wait to be replaced by spare ones; 3 sectors cannot be read; below its threshold: Raw_Read_Error_Rate"},
		"ata-failed":    {smart.Failing, "its own check has failed"},
		"scsi-failing":  {smart.Failing, "its own check has failed: HARDWARE IMPENDING FAILURE GENERAL HARD DRIVE FAILURE"},
		"scsi-silent":   {smart.Unknown, "it tells nothing of its health"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report, err := smart.Parse(sample(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if level, words := report.Judge(); level != want.level || words != want.words {
				t.Errorf("%s: %s, want %s: %s", level, words, want.level, want.words)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	number := func(n *int64) int64 {
		if n == nil {
			return -1
		}
		return *n
	}
	ata, err := smart.Parse(sample(t, "ata-pending"))
	if err != nil {
		t.Fatal(err)
	}
	if number(ata.ReallocatedSectors) != 120 || number(ata.PendingSectors) != 8 || number(ata.UncorrectableSectors) != 3 || ata.TemperatureCelsius != nil {
		t.Errorf("ATA: %+v", ata)
	}
	scsi, err := smart.Parse(sample(t, "scsi-failing"))
	if err != nil {
		t.Fatal(err)
	}
	if number(scsi.ReallocatedSectors) != 2210 || number(scsi.PercentageUsed) != 12 || number(scsi.TemperatureCelsius) != 35 {
		t.Errorf("SCSI: %+v", scsi)
	}
	nvme, err := smart.Parse(sample(t, "nvme-warnings"))
	if err != nil {
		t.Fatal(err)
	}
	if number(nvme.PercentageUsed) != 103 || number(nvme.MediaErrors) != 7 || number(nvme.PowerOnHours) != 31022 {
		t.Errorf("NVMe: %+v", nvme)
	}
}

// runner answers for the host's smartctl.
type runner struct {
	stdout []byte
	err    error
	ran    hostexec.Command
}

func (r *runner) Run(_ context.Context, command hostexec.Command) (hostexec.Result, error) {
	r.ran = command
	return hostexec.Result{Stdout: r.stdout}, r.err
}

func TestAsk(t *testing.T) {
	t.Parallel()
	exited := func(code int) error { return &hostexec.ExitError{Command: "smartctl", ExitCode: code} }
	for name, c := range map[string]struct {
		stdout []byte
		err    error
		want   error  // nil: a report
		text   string // in the error
	}{
		"a disk that is failing is no error of the call": {stdout: sample(t, "scsi-failing"), err: exited(8)},
		"no SMART":     {stdout: sample(t, "virtio"), err: exited(1), want: smart.ErrUnsupported, text: "Unable to detect device type"},
		"asleep":       {stdout: sample(t, "ata-asleep"), err: exited(2), want: smart.ErrAsleep},
		"no smartctl":  {err: volume.ErrToolMissing, want: volume.ErrToolMissing},
		"killed":       {stdout: []byte(`{"smart`), err: &hostexec.ExitError{Command: "smartctl", ExitCode: -1, TimedOut: true}, text: "killed after its deadline"},
		"no output":    {err: exited(1), text: "exited with 1"},
		"no JSON":      {stdout: []byte("smartctl 5.43: unrecognized option --json"), err: exited(1), text: "read what smartctl says"},
		"other JSON":   {stdout: []byte(`{}`), text: "no member smartctl"},
		"open refused": {stdout: []byte(`{"smartctl":{"messages":[{"string":"Smartctl open device: /dev/sdc failed: No such device","severity":"error"}],"exit_status":2}}`), err: exited(2), text: "No such device"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &runner{stdout: c.stdout, err: c.err}
			report, err := smart.Ask(t.Context(), r, "/dev/sdc")
			if c.want == nil && c.text == "" {
				if err != nil || report.Passed == nil || *report.Passed {
					t.Errorf("%+v, %v", report, err)
				}
			} else if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "/dev/sdc") {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
			if got := strings.Join(r.ran.Args, " "); r.ran.Name != "smartctl" || !strings.Contains(got, "--nocheck=standby") || !strings.HasSuffix(got, " -- /dev/sdc") {
				t.Errorf("ran %s %s", r.ran.Name, got)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no samples: ", err)
	}
	for _, file := range files {
		f.Add(sample(f, strings.TrimSuffix(filepath.Base(file), ".json")))
	}
	f.Add([]byte(`{"smartctl":{"exit_status":2,"messages":[{"string":"\u0000\u001b[31m"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := smart.Parse(data)
		var text string
		if err != nil {
			text = err.Error()
		} else {
			level, words := report.Judge()
			if text = words; words == "" || level < smart.Unknown || level > smart.Failing {
				t.Errorf("level %v, words %q", level, words)
			}
		}
		if strings.ContainsAny(text, "\x00\x1b\n") && err == nil {
			t.Errorf("control characters in %q", text)
		}
	})
}
