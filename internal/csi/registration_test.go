// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/berth-dev/berth/internal/csi"
)

// The test plays kubelet.
func TestRegistration(t *testing.T) {
	t.Parallel()
	log, _ := debugLog()
	dir := filepath.Dir(socketPath(t))
	socket := filepath.Join(dir, "berth.dev-reg.sock")
	r := &csi.Registration{Directory: dir, DriverName: "berth.dev", Endpoint: "/var/lib/kubelet/plugins/berth.dev/csi.sock", Log: log}
	stop := start(t, r, socket)
	if info, err := os.Lstat(socket); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("socket %v, %v", info, err)
	}
	if err := r.Registered(); err == nil {
		t.Error("registered before kubelet said so")
	}

	kubelet := registration.NewRegistrationClient(dial(t, socket))
	info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != "CSIPlugin" || info.GetName() != "berth.dev" || info.GetEndpoint() != r.Endpoint || strings.Join(info.GetSupportedVersions(), " ") != "1.0.0" {
		t.Errorf("got %v", info)
	}
	for _, tt := range []struct {
		status *registration.RegistrationStatus
		want   string
	}{
		{&registration.RegistrationStatus{Error: "no such node"}, "no such node"},
		{&registration.RegistrationStatus{PluginRegistered: true}, ""},
		{&registration.RegistrationStatus{Error: "kubelet restarted"}, "kubelet restarted"},
	} {
		if _, err := kubelet.NotifyRegistrationStatus(t.Context(), tt.status); err != nil {
			t.Fatal(err)
		}
		err := r.Registered()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("after %v: %v", tt.status, err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there, so kubelet does not forget the driver")
	}
}
