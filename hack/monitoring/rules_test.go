// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// readRules parses the rules as `promtool check rules` does.
func readRules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(rulesFile, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		t.FailNow()
	}
	rules := map[string]rulefmt.Rule{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			if _, twice := rules[rule.Alert]; twice || rule.Alert == "" {
				t.Errorf("group %s: a rule that is no alert, or the alert %q a second time", group.Name, rule.Alert)
			}
			rules[rule.Alert] = rule
		}
	}
	return rules
}

var (
	heading     = regexp.MustCompile(`(?m)^#+ (Berth[A-Za-z]+)$`)
	namesObject = regexp.MustCompile(`\$labels\.`)
)

func TestRules(t *testing.T) {
	t.Parallel()
	metrics := documented(t)
	page, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, match := range heading.FindAllStringSubmatch(string(page), -1) {
		explained[match[1]] = true
	}
	rules := readRules(t)
	for name := range explained {
		if _, ok := rules[name]; !ok {
			t.Errorf("the guide explains %s, which is no alert", name)
		}
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
			if err != nil {
				t.Fatal(err)
			}
			for _, problem := range problems(expr, metrics) {
				t.Error(problem)
			}
			if !explained[name] {
				t.Error("the guide has no heading for it")
			}
			if severity := rule.Labels["severity"]; !slices.Contains([]string{"critical", "warning", "info"}, severity) {
				t.Errorf("severity %q", severity)
			}
			if rule.Annotations["summary"] == "" {
				t.Error("no summary")
			}
			// What tells that something is absent has no object.
			if description := rule.Annotations["description"]; description == "" || !strings.Contains(rule.Expr, "absent(") && !namesObject.MatchString(description) {
				t.Errorf("the description does not name the object: %s", description)
			}
			want := "https://github.com/berth-dev/berth/blob/main/docs/guides/monitor.md#" + strings.ToLower(name)
			if got := rule.Annotations["runbook_url"]; got != want {
				t.Errorf("runbook_url %s, not %s", got, want)
			}
		})
	}
}

// unitTests is what is looked at of the format of `promtool test rules`.
type unitTests struct {
	Tests []struct {
		Name        string `yaml:"name"`
		InputSeries []struct {
			Series string `yaml:"series"`
		} `yaml:"input_series"`
		AlertRuleTests []struct {
			AlertName string     `yaml:"alertname"`
			ExpAlerts []struct{} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	} `yaml:"tests"`
}

// That the alerts do what deploy/monitoring/tests/rules.yaml says is promtool's to check. Here
// it is whether each of them fires there and is silent, over series that the programs export:
// promtool takes an alert that does not exist for one that is silent, and any series.
func TestEachAlertIsTested(t *testing.T) {
	t.Parallel()
	rules := readRules(t)
	content, err := os.ReadFile(testsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file unitTests
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatalf("%s: %v", testsFile, err)
	}
	fired, silent := map[string]bool{}, map[string]bool{}
	metrics := documented(t)
	for _, test := range file.Tests {
		for _, input := range test.InputSeries {
			wantSeries(t, metrics, input.Series)
		}
		for _, alert := range test.AlertRuleTests {
			if _, ok := rules[alert.AlertName]; !ok {
				t.Errorf("%s: no alert is called %s", test.Name, alert.AlertName)
			}
			if len(alert.ExpAlerts) > 0 {
				fired[alert.AlertName] = true
			} else {
				silent[alert.AlertName] = true
			}
		}
	}
	for name := range rules {
		if !fired[name] || !silent[name] {
			t.Errorf("%s: fires in a test: %v, is silent in one: %v", name, fired[name], silent[name])
		}
	}
}

// wantSeries fails the test unless the programs export such a series, with all of its labels.
func wantSeries(t *testing.T, metrics map[string]metric, notation string) {
	t.Helper()
	set, err := parser.NewParser(parser.Options{}).ParseMetric(notation)
	if err != nil {
		t.Error(err)
		return
	}
	name := set.Get("__name__")
	m, ok := metrics[name]
	if base, isPart := partOf(name, metrics); isPart {
		m, ok = metrics[base], true
	}
	if !ok {
		t.Errorf("no program exports %s", name)
	}
	for _, label := range m.labels {
		// One that is empty is none, and the queues' priority is not asked for.
		if !set.Has(label) && label != "priority" && label != "source" {
			t.Errorf("%s: every %s has the label %s", notation, name, label)
		}
	}
	for label := range set.Map() {
		if label != "__name__" && label != "le" && !slices.Contains(m.labels, label) && !slices.Contains(targetLabels, label) {
			t.Errorf("%s: no %s has the label %s", notation, name, label)
		}
	}
}
