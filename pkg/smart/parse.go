// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package smart

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// ErrUnsupported is a device that smartctl cannot talk to: it has no SMART.
var ErrUnsupported = errors.New("the device has no SMART")

// ErrAsleep is a disk that sleeps and was not woken.
var ErrAsleep = errors.New("the disk sleeps")

// output is what this package reads of smartctl's JSON (smartctl(8), --json).
type output struct {
	Smartctl *struct {
		Messages []struct {
			Text     string `json:"string"`
			Severity string `json:"severity"`
		} `json:"messages"`
		ExitStatus int `json:"exit_status"`
	} `json:"smartctl"`
	Status *struct {
		Passed *bool `json:"passed"`
		SCSI   *struct {
			Text string `json:"ie_string"`
		} `json:"scsi"`
	} `json:"smart_status"`
	NVMe *struct {
		CriticalWarning *uint8 `json:"critical_warning"`
		PercentageUsed  *int64 `json:"percentage_used"`
		MediaErrors     *int64 `json:"media_errors"`
	} `json:"nvme_smart_health_information_log"`
	ATA *struct {
		Table []struct {
			ID         int    `json:"id"`
			Name       string `json:"name"`
			WhenFailed string `json:"when_failed"`
			Flags      struct {
				Prefailure bool `json:"prefailure"`
			} `json:"flags"`
			Raw struct {
				Value int64 `json:"value"`
			} `json:"raw"`
		} `json:"table"`
	} `json:"ata_smart_attributes"`
	GrownDefects *int64 `json:"scsi_grown_defect_list"`
	Endurance    *struct {
		UsedPercent *int64 `json:"current_percent"`
	} `json:"endurance_used"`
	SCSIEndurance *int64 `json:"scsi_percentage_used_endurance_indicator"`
	Temperature   *struct {
		Current *int64 `json:"current"`
	} `json:"temperature"`
	PowerOnTime *struct {
		Hours *int64 `json:"hours"`
	} `json:"power_on_time"`
}

// Bits of smartctl's exit status (smartctl(8), EXIT STATUS).
const (
	exitCommandLine = 1 << iota
	exitOpenFailed  // or asleep
)

// Numbers of ATA attributes, which almost all vendors agree on.
const (
	attributeReallocated   = 5
	attributePending       = 197
	attributeUncorrectable = 198
)

// Parse reads the output of smartctl --json. ErrUnsupported and ErrAsleep say why
// there is no report; any other error is an output that is not understood.
func Parse(data []byte) (Report, error) {
	var out output
	if err := json.Unmarshal(data, &out); err != nil {
		return Report{}, fmt.Errorf("read what smartctl says: %w", err)
	}
	if out.Smartctl == nil {
		return Report{}, errors.New("read what smartctl says: no member smartctl in it")
	}
	if err := out.refusal(); err != nil {
		return Report{}, err
	}
	var r Report
	if out.Status != nil {
		r.Passed = out.Status.Passed
		if out.Status.SCSI != nil {
			r.Explanation = printable(out.Status.SCSI.Text)
		}
	}
	if out.NVMe != nil {
		r.CriticalWarning, r.PercentageUsed, r.MediaErrors = out.NVMe.CriticalWarning, out.NVMe.PercentageUsed, out.NVMe.MediaErrors
	}
	out.attributes(&r)
	if r.ReallocatedSectors == nil {
		r.ReallocatedSectors = out.GrownDefects
	}
	if r.PercentageUsed == nil && out.Endurance != nil {
		r.PercentageUsed = out.Endurance.UsedPercent
	}
	if r.PercentageUsed == nil {
		r.PercentageUsed = out.SCSIEndurance
	}
	if out.Temperature != nil {
		r.TemperatureCelsius = out.Temperature.Current
	}
	if out.PowerOnTime != nil {
		r.PowerOnHours = out.PowerOnTime.Hours
	}
	return r, nil
}

func (o *output) attributes(r *Report) {
	if o.ATA == nil {
		return
	}
	for _, a := range o.ATA.Table {
		value := a.Raw.Value
		switch a.ID {
		case attributeReallocated:
			r.ReallocatedSectors = &value
		case attributePending:
			r.PendingSectors = &value
		case attributeUncorrectable:
			r.UncorrectableSectors = &value
		}
		if a.Flags.Prefailure && a.WhenFailed == "now" {
			r.BelowThreshold = append(r.BelowThreshold, printable(a.Name))
		}
	}
}

// refusal is why smartctl has not asked the disk.
func (o *output) refusal() error {
	status := o.Smartctl.ExitStatus
	if status&(exitCommandLine|exitOpenFailed) == 0 {
		return nil
	}
	var texts []string
	for _, m := range o.Smartctl.Messages {
		texts = append(texts, printable(m.Text))
		switch {
		case strings.Contains(m.Text, "Unable to detect device type"), strings.Contains(m.Text, "Unknown USB bridge"):
			return fmt.Errorf("%w: %s", ErrUnsupported, printable(m.Text))
		case strings.Contains(m.Text, "STANDBY"), strings.Contains(m.Text, "SLEEP"), strings.Contains(m.Text, "low-power"):
			return ErrAsleep
		}
	}
	if len(texts) == 0 {
		texts = []string{"it gives no reason"}
	}
	return fmt.Errorf("smartctl has ended with status %d: %s", status, strings.Join(texts, "; "))
}

// printable keeps what a disk says of itself from reaching logs and objects with
// more than text in it.
func printable(s string) string {
	const limit = 200
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}
