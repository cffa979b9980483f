// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/command"
)

// bundleFolder is the one folder at the top of a bundle.
const bundleFolder = "berth-support-bundle/"

// bundleMode is that of the file and of all in it: what is in it is of nobody else's concern.
const bundleMode = 0o600

// bundleStdout is the file name that stands for standard output.
const bundleStdout = "-"

const bundleReadme = `What Berth's developers need to see of a cluster, collected by kubectl berth support-bundle.

versions.txt    of the plugin, the API server and Berth's images, and when this was collected
errors.txt      what could not be read, and why; empty when all could be
summary/        what kubectl berth status, disks, pools, volumes and orphans list say
berth/          Berth's own objects: PoolSets, Pools, BlockDevices, LocalVolumes, LocalSnapshots
kubernetes/     StorageClasses, PersistentVolumes, claims and snapshots of the driver berth.dev, its CSIDriver, CSINodes
                and CSIStorageCapacities; nodes with their labels, conditions and versions; events of all these
system/         Deployment, DaemonSet, pods, Lease and definitions of Berth; the ConfigMap of the disk filters
lvm-metadata/   the kept metadata of volume groups
logs/           the last lines of each container of Berth, and of the one that ran before it

Names of claims, namespaces, nodes and disks, their serial numbers, and labels are in it as they are. Not in it: any Secret,
values of environment variables, annotations of others than Berth and Kubernetes, and whatever looks or is called like a
password, passphrase, token or key: ` + redacted + ` stands there.
`

// bundle is one that is being written.
type bundle struct {
	*plugin
	tar *tar.Writer
	// failures are what could not be read, one a line.
	failures []string
	// read is how many kinds of objects could be.
	read int
	// known are the objects that events are collected of, as kind/namespace/name.
	known map[string]bool
}

// bundleOutput checks the name of the file.
func bundleOutput(output string) error {
	if output == outputTable || output == bundleStdout || strings.HasSuffix(output, ".tar.gz") || strings.HasSuffix(output, ".tgz") {
		return nil
	}
	return fmt.Errorf("%w: --output is %q; of support-bundle it is a file that ends with .tar.gz or .tgz, or - for standard output", errUsage, output)
}

// supportBundle collects a bundle. It is troubled when something could not be read; what could
// be is in the bundle nevertheless. A cluster of which nothing can be read is an error.
func (p *plugin) supportBundle(ctx context.Context, _ []string) (troubled bool, err error) {
	name := p.o.Output
	if name == outputTable {
		name = "berth-support-bundle-" + p.now.UTC().Format("20060102T150405Z") + ".tar.gz"
	}
	p.o.Output = outputTable
	if name == bundleStdout {
		failures, err := p.writeBundle(ctx, p.out)
		p.complainOf(failures)
		return len(failures) > 0, err
	}
	// An existing file is never overwritten, and a link is not followed.
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, bundleMode)
	if err != nil {
		if errors.Is(err, os.ErrExist) {
			return false, fmt.Errorf("%w: %s is there already; name another file with --output", errUsage, name)
		}
		return false, fmt.Errorf("make the bundle: %w", err)
	}
	failures, err := p.writeBundle(ctx, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return false, errors.Join(err, os.Remove(name))
	}
	fmt.Fprintf(p.out, "%s was written. Look at it before you hand it on: README.txt in it says what it holds.\n", name)
	p.complainOf(failures)
	return len(failures) > 0, nil
}

func (p *plugin) complainOf(failures []string) {
	if len(failures) == 0 {
		return
	}
	fmt.Fprintln(p.errs, "Could not be read (also in errors.txt):")
	for _, failure := range failures {
		fmt.Fprintln(p.errs, "  "+failure)
	}
}

// writeBundle writes all of a bundle, always in the same order.
func (p *plugin) writeBundle(ctx context.Context, to io.Writer) (failures []string, err error) {
	zip := gzip.NewWriter(to)
	b := &bundle{plugin: p, tar: tar.NewWriter(zip), known: map[string]bool{}}
	steps := []func(context.Context) error{
		func(context.Context) error { return b.add("README.txt", []byte(bundleReadme)) },
		b.addObjects, b.addEvents, b.addMetadata, b.addSummaries, b.addLogs, b.addVersions,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("collect the bundle: %w", err)
		}
	}
	if b.read == 0 {
		return nil, fmt.Errorf("nothing of the cluster could be read: %s", strings.Join(b.failures[:min(len(b.failures), 1)], ""))
	}
	if err := b.add("errors.txt", []byte(lines(b.failures))); err != nil {
		return nil, err
	}
	if err := errors.Join(b.tar.Close(), zip.Close()); err != nil {
		return nil, fmt.Errorf("write the bundle: %w", err)
	}
	return b.failures, nil
}

func lines(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all, "\n") + "\n"
}

// add writes one file of the bundle. Its content is redacted already.
func (b *bundle) add(name string, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: bundleFolder + name, Mode: bundleMode, Size: int64(len(content)), ModTime: b.now.UTC().Truncate(time.Second), Format: tar.FormatPAX}
	if err := b.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("write %s into the bundle: %w", name, err)
	}
	if _, err := b.tar.Write(content); err != nil {
		return fmt.Errorf("write %s into the bundle: %w", name, err)
	}
	return nil
}

// fail notes what could not be read.
func (b *bundle) fail(what string, err error) {
	b.failures = append(b.failures, redactText(strings.Join(strings.Fields(what+": "+err.Error()), " ")))
}

// addSummaries adds what the other commands say, which is what one reads first.
func (b *bundle) addSummaries(ctx context.Context) error {
	for _, summary := range []struct {
		name string
		run  func(*plugin, context.Context, []string) (bool, error)
		args []string
	}{
		{"status", (*plugin).status, nil},
		{"disks", (*plugin).disks, nil},
		{"pools", (*plugin).pools, nil},
		{"volumes", (*plugin).volumes, nil},
		{"orphans", (*plugin).orphans, []string{"list"}},
	} {
		name := "summary/" + summary.name + ".txt"
		var said strings.Builder
		of := *b.plugin
		of.out, of.errs, of.o.Output = &said, &said, "wide"
		if _, err := summary.run(&of, ctx, summary.args); err != nil {
			b.fail(name, err)
			continue
		}
		if err := b.add(name, []byte(redactText(said.String()))); err != nil {
			return err
		}
	}
	return nil
}

// addVersions says what runs.
func (b *bundle) addVersions(ctx context.Context) error {
	server := "unknown"
	if b.cluster.Version != nil {
		version, err := b.cluster.Version()
		if err != nil {
			b.fail("version of the API server", err)
		} else {
			server = version
		}
	}
	all := []string{
		"collected at:  " + b.now.UTC().Format(time.RFC3339),
		"kubectl-berth: " + command.Version(),
		"API server:    " + server,
	}
	pods, err := b.systemPods(ctx)
	if err != nil {
		return nil //nolint:nilerr // noted with the logs
	}
	for i := range pods {
		for _, status := range pods[i].Status.ContainerStatuses {
			all = append(all, fmt.Sprintf("%s/%s: %s (%s)", pods[i].Name, status.Name, status.Image, cmp.Or(status.ImageID, "not started")))
		}
	}
	return b.add("versions.txt", []byte(redactText(lines(all))))
}
