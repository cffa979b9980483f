// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// Common are the options of every command.
type Common struct {
	// ShowVersion asks for the version and nothing else.
	ShowVersion bool

	profiling bool
	logLevel  string
	logFormat string
	level     slog.Level
}

// AddFlags adds --log-level, --log-format, --profiling and --version.
func (c *Common) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.logFormat, "log-format", "json", "json or text")
	fs.BoolVar(&c.profiling, "profiling", false, "answer /debug/pprof/ at --http-address: it shows what the process works on, to whoever can reach it")
	fs.BoolVar(&c.ShowVersion, "version", false, "print the version and exit")
}

// Validate names every option that is wrong.
func (c *Common) Validate() error {
	var problems []error
	if err := c.level.UnmarshalText([]byte(c.logLevel)); err != nil {
		problems = append(problems, fmt.Errorf("--log-level %q must be debug, info, warn or error", c.logLevel))
	}
	if c.logFormat != "json" && c.logFormat != "text" {
		problems = append(problems, fmt.Errorf("--log-format %q must be json or text", c.logFormat))
	}
	return errors.Join(problems...)
}

// NewLogger returns the process's logger and gives it to the libraries.
func (c *Common) NewLogger(w io.Writer) *slog.Logger {
	var handler slog.Handler
	if settings := (&slog.HandlerOptions{Level: c.level}); c.logFormat == "text" {
		handler = slog.NewTextHandler(w, settings)
	} else {
		handler = slog.NewJSONHandler(w, settings)
	}
	ctrl.SetLogger(logr.FromSlogHandler(handler))
	klog.SetLogger(logr.FromSlogHandler(handler))
	return slog.New(handler)
}
