// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Monitor is a connection to QEMU's monitor, which speaks QMP
// (docs/interop/qmp-spec of QEMU). Close it soon: it keeps others out.
type Monitor struct {
	conn   net.Conn
	reader *bufio.Reader
	events []Event
}

// Event is something that QEMU reports by itself.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *CommandError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

// OpenMonitor connects to the monitor of the guest in dir.
func OpenMonitor(ctx context.Context, dir string) (*Monitor, error) {
	conn, err := dial(ctx, dir, QMPSocket)
	if err != nil {
		return nil, err
	}
	m := &Monitor{conn: conn, reader: bufio.NewReader(conn)}
	greeting, err := m.read()
	if err == nil && greeting.QMP == nil {
		err = errors.New("no greeting")
	}
	if err == nil {
		err = m.Execute("qmp_capabilities", nil, nil)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open monitor in %s: %w", dir, err)
	}
	return m, nil
}

// Close closes the connection.
func (m *Monitor) Close() error { return m.conn.Close() }

// message is any line that QEMU sends.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *CommandError   `json:"error"`
	Event
}

func (m *Monitor) read() (message, error) {
	var msg message
	line, err := m.reader.ReadBytes('\n')
	if err != nil {
		return msg, err
	}
	err = json.Unmarshal(line, &msg)
	return msg, err
}

// Execute runs a command and stores what it returns in result, unless that is
// nil. A refusal is a *CommandError.
func (m *Monitor) Execute(command string, arguments, result any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		msg, err := m.read()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case msg.Name != "":
			m.events = append(m.events, msg.Event)
		case msg.Error != nil:
			msg.Error.Command = command
			return msg.Error
		case result == nil:
			return nil
		default:
			return json.Unmarshal(msg.Return, result)
		}
	}
}

// Await waits for an event that fits, among those that came since the monitor
// was opened, until limit has passed.
func (m *Monitor) Await(limit time.Duration, fits func(Event) bool) error {
	m.conn.SetReadDeadline(time.Now().Add(limit))
	defer m.conn.SetReadDeadline(time.Time{})
	for {
		for i, event := range m.events {
			if fits(event) {
				m.events = append(m.events[:i:i], m.events[i+1:]...)
				return nil
			}
		}
		msg, err := m.read()
		if err != nil {
			return err
		}
		if msg.Name != "" {
			m.events = append(m.events, msg.Event)
		}
	}
}

// AddDisk plugs a disk into the running guest. Its image must exist.
func (m *Monitor) AddDisk(disk Disk) error {
	if err := disk.Validate(); err != nil {
		return err
	}
	if err := m.Execute("blockdev-add", disk.blockdev(), nil); err != nil {
		return fmt.Errorf("add disk %s: %w", disk.Serial, err)
	}
	bus := ""
	var err error
	if disk.Bus != BusSCSI {
		bus, err = m.freePort()
	}
	if err == nil {
		err = m.Execute("device_add", disk.device(bus), nil)
	}
	if err != nil {
		return fmt.Errorf("add disk %s: %w", disk.Serial, errors.Join(err, m.Execute("blockdev-del", map[string]any{"node-name": disk.nodeName()}, nil)))
	}
	return nil
}

// RemoveDisk asks the guest to give a disk up and returns when it did. Any disk
// but the root disk can go.
func (m *Monitor) RemoveDisk(disk Disk, limit time.Duration) error {
	if err := m.Execute("device_del", map[string]any{"id": disk.id()}, nil); err != nil {
		return fmt.Errorf("remove disk %s: %w", disk.Serial, err)
	}
	err := m.Await(limit, func(event Event) bool {
		var data struct {
			Device string `json:"device"`
		}
		return event.Name == "DEVICE_DELETED" && json.Unmarshal(event.Data, &data) == nil && data.Device == disk.id()
	})
	if err != nil {
		return fmt.Errorf("remove disk %s: the guest did not give it up: %w", disk.Serial, err)
	}
	if err := m.Execute("blockdev-del", map[string]any{"node-name": disk.nodeName()}, nil); err != nil {
		return fmt.Errorf("remove disk %s: %w", disk.Serial, err)
	}
	return nil
}

// WarnDisk sets the bits of the critical warning in the health log of an NVMe disk
// (NVM Express Base Specification 2.0, figure 207), until the disk is unplugged.
func (m *Monitor) WarnDisk(disk Disk, bits uint8) error {
	if disk.Bus != BusNVMe {
		return fmt.Errorf("disk %s is no NVMe disk: it has no health log", disk.Serial)
	}
	err := m.Execute("qom-set", map[string]any{
		"path": "/machine/peripheral/" + disk.id(), "property": "smart_critical_warning", "value": bits,
	}, nil)
	if err != nil {
		return fmt.Errorf("warn of disk %s: %w", disk.Serial, err)
	}
	return nil
}

// freePort finds a root port without a device.
func (m *Monitor) freePort() (string, error) {
	type device struct {
		ID     string `json:"qdev_id"`
		Bridge *struct {
			Devices []json.RawMessage `json:"devices"`
		} `json:"pci_bridge"`
	}
	var buses []struct {
		Devices []device `json:"devices"`
	}
	if err := m.Execute("query-pci", nil, &buses); err != nil {
		return "", err
	}
	free := map[string]bool{}
	for _, bus := range buses {
		for _, device := range bus.Devices {
			free[device.ID] = device.Bridge != nil && len(device.Bridge.Devices) == 0
		}
	}
	for port := range rootPorts {
		if free[portName(port)] {
			return portName(port), nil
		}
	}
	return "", fmt.Errorf("all %d root ports are taken", rootPorts)
}
