// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeQEMU has block nodes and devices as QEMU has them, with its rules: a
// device needs a node, a node in use stays, and a guest gives a device up later.
type fakeQEMU struct {
	mu      sync.Mutex
	nodes   map[string]bool
	devices map[string]string // id to node
	buses   map[string]string // bus to device
	// keeps are devices that the guest does not give up.
	keeps map[string]bool
	// warnings of NVMe devices by path.
	warnings map[string]uint8
}

func startFakeQEMU(t *testing.T) (*fakeQEMU, string) {
	q := &fakeQEMU{nodes: map[string]bool{}, devices: map[string]string{}, buses: map[string]string{}, keeps: map[string]bool{}, warnings: map[string]uint8{}}
	return q, serve(t, QMPSocket, q.handle)
}

func (q *fakeQEMU) handle(conn net.Conn, lines *bufio.Reader) {
	send(conn, object{"QMP": object{"version": object{}}})
	for negotiated := false; ; {
		r, ok := receiveRequest(lines)
		if !ok {
			return
		}
		if !negotiated && r.Execute != "qmp_capabilities" {
			send(conn, object{"error": object{"class": "CommandNotFound", "desc": "expecting capabilities negotiation"}})
			continue
		}
		negotiated = true
		send(conn, object{"event": "RTC_CHANGE", "data": object{"offset": 1}}) // events come at any time
		q.mu.Lock()
		answer, event := q.execute(r)
		q.mu.Unlock()
		send(conn, answer)
		if event != nil {
			send(conn, event)
		}
	}
}

func refuse(desc string) object {
	return object{"error": object{"class": "GenericError", "desc": desc}}
}

func (q *fakeQEMU) execute(r request) (answer, event object) {
	var a struct {
		NodeName string `json:"node-name"`
		ID       string `json:"id"`
		Drive    string `json:"drive"`
		Bus      string `json:"bus"`
		Path     string `json:"path"`
		Property string `json:"property"`
		Value    uint8  `json:"value"`
	}
	json.Unmarshal(r.Arguments, &a)
	switch r.Execute {
	case "qmp_capabilities":
	case "blockdev-add":
		if q.nodes[a.NodeName] {
			return refuse("Duplicate nodes with node-name='" + a.NodeName + "'"), nil
		}
		q.nodes[a.NodeName] = true
	case "blockdev-del":
		for _, node := range q.devices {
			if node == a.NodeName {
				return refuse("Node is in use"), nil
			}
		}
		delete(q.nodes, a.NodeName)
	case "device_add":
		if !q.nodes[a.Drive] {
			return refuse("Cannot find device='" + a.Drive + "' nor node-name"), nil
		}
		if q.buses[a.Bus] != "" && a.Bus != "scsi0.0" {
			return refuse("slot 0 function 0 already occupied"), nil
		}
		q.devices[a.ID], q.buses[a.Bus] = a.Drive, a.ID
	case "device_del":
		if _, there := q.devices[a.ID]; !there {
			return refuse("Device '" + a.ID + "' not found"), nil
		}
		if q.keeps[a.ID] {
			break
		}
		delete(q.devices, a.ID)
		for bus, id := range q.buses {
			if id == a.ID {
				delete(q.buses, bus)
			}
		}
		return object{"return": object{}}, object{"event": "DEVICE_DELETED", "data": object{"device": a.ID, "path": "/machine/" + a.ID}}
	case "qom-set":
		if _, there := q.devices[strings.TrimPrefix(a.Path, "/machine/peripheral/")]; !there || a.Property != "smart_critical_warning" {
			return refuse("Device '" + a.Path + "' not found"), nil
		}
		q.warnings[a.Path] = a.Value
	case "query-pci":
		var devices []object
		for port := range rootPorts {
			bridge := object{}
			if id := q.buses[portName(port)]; id != "" {
				bridge["devices"] = []object{{"qdev_id": id}}
			}
			devices = append(devices, object{"qdev_id": portName(port), "pci_bridge": bridge})
		}
		return object{"return": []object{{"bus": 0, "devices": devices}}}, nil
	default:
		return refuse("unknown command " + r.Execute), nil
	}
	return object{"return": object{}}, nil
}

func openMonitor(t *testing.T, dir string) *Monitor {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	m, err := OpenMonitor(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func virtioDisk(serial string) Disk {
	return Disk{Serial: serial, Class: ClassData, Bus: BusVirtio, SizeBytes: 1 << 20, Image: strings.ToLower(serial) + ".img"}
}

func TestAddAndRemoveDisks(t *testing.T) {
	t.Parallel()
	q, dir := startFakeQEMU(t)
	m := openMonitor(t, dir)
	scsi := virtioDisk("S")
	scsi.Bus, scsi.WWN = BusSCSI, 0x5000000000000201
	nvme := virtioDisk("M")
	nvme.Bus = BusNVMe
	disks := []Disk{virtioDisk("A"), virtioDisk("B"), nvme, scsi}
	for _, disk := range disks {
		if err := m.AddDisk(disk); err != nil {
			t.Fatal(err)
		}
	}
	if len(q.buses) != 4 { // three ports and the SCSI controller
		t.Errorf("buses = %v", q.buses)
	}
	if err := m.AddDisk(virtioDisk("A")); err == nil {
		t.Error("added the same disk twice")
	}
	for _, disk := range disks {
		if err := m.RemoveDisk(disk, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if len(q.nodes) != 0 || len(q.devices) != 0 {
		t.Errorf("left nodes %v and devices %v", q.nodes, q.devices)
	}
	var refused *CommandError
	if err := m.RemoveDisk(disks[0], time.Second); !errors.As(err, &refused) || refused.Command != "device_del" {
		t.Errorf("removing a disk that is gone: %v", err)
	}
}

func TestWarnDisk(t *testing.T) {
	t.Parallel()
	q, dir := startFakeQEMU(t)
	m := openMonitor(t, dir)
	nvme := virtioDisk("M")
	nvme.Bus = BusNVMe
	if err := m.WarnDisk(nvme, 4); err == nil {
		t.Error("warned of a disk that is not there")
	}
	if err := m.AddDisk(nvme); err != nil {
		t.Fatal(err)
	}
	if err := m.WarnDisk(nvme, 4); err != nil || q.warnings["/machine/peripheral/dev-m"] != 4 {
		t.Errorf("%v, %v", q.warnings, err)
	}
	if err := m.WarnDisk(virtioDisk("A"), 4); err == nil || !strings.Contains(err.Error(), "no health log") {
		t.Errorf("a virtio disk: %v", err)
	}
}

func TestAddDiskLeavesNothingWhenNoPortIsFree(t *testing.T) {
	t.Parallel()
	q, dir := startFakeQEMU(t)
	m := openMonitor(t, dir)
	for n := range rootPorts {
		if err := m.AddDisk(virtioDisk("A" + string(rune('A'+n)))); err != nil {
			t.Fatal(err)
		}
	}
	err := m.AddDisk(virtioDisk("ONE-TOO-MANY"))
	if err == nil || !strings.Contains(err.Error(), "root ports are taken") {
		t.Errorf("error = %v", err)
	}
	if len(q.nodes) != rootPorts {
		t.Errorf("%d block nodes, want %d", len(q.nodes), rootPorts)
	}
}

func TestRemoveDiskFailsWhenTheGuestKeepsIt(t *testing.T) {
	t.Parallel()
	q, dir := startFakeQEMU(t)
	m := openMonitor(t, dir)
	disk := virtioDisk("A")
	if err := m.AddDisk(disk); err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	q.keeps[disk.id()] = true
	q.mu.Unlock()
	if err := m.RemoveDisk(disk, 50*time.Millisecond); err == nil {
		t.Error("removed a disk that the guest keeps")
	}
	if q.nodes[disk.nodeName()] != true {
		t.Error("the image was taken from under the guest")
	}
}

func TestMonitorsTakeTurns(t *testing.T) {
	t.Parallel()
	_, dir := startFakeQEMU(t)
	first := openMonitor(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := OpenMonitor(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second monitor beside an open one: %v", err)
	}
	first.Close()
	openMonitor(t, dir)
}

func TestMonitorOfAMachineThatIsOff(t *testing.T) {
	t.Parallel()
	if _, err := OpenMonitor(t.Context(), t.TempDir()); err == nil {
		t.Error("opened a monitor without a machine")
	}
}
