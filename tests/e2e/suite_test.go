// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// patience is how long one step may take on a slow cluster (emulated nodes).
const patience = 4 * time.Minute

var options struct {
	kubeconfig  string
	description string
	creations   int
	powerLosses int
	operations  int
	outage      time.Duration
}

func init() {
	flag.StringVar(&options.kubeconfig, "cluster-kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig of the cluster under test")
	flag.StringVar(&options.description, "cluster", "testbed.yaml", "description of the cluster under test")
	flag.IntVar(&options.creations, "creations", 20, "creations and deletions under agents that are killed")
	flag.IntVar(&options.operations, "operations", 100, "random operations by eight workers")
	flag.DurationVar(&options.outage, "outage", time.Minute, "how long the control plane is away")
	flag.IntVar(&options.powerLosses, "power-losses", 2, "power losses during creations and deletions")
}

// suite is the cluster under test.
var suite struct {
	description *Description
	config      *rest.Config
	client      client.WithWatch
	hosts       Hosts
	nodes       []string
	foreign     map[string]string
}

func TestE2E(t *testing.T) {
	if options.kubeconfig == "" {
		t.Skip("no cluster: set KUBECONFIG or -cluster-kubeconfig; `make e2e` brings the testbed up and does it")
	}
	log.SetLogger(logr.Discard()) // what clients say is in their errors
	RegisterFailHandler(Fail)
	RunSpecs(t, "Berth end to end")
}

// The suite may run in several processes at once; specs that need the cluster for
// themselves are Serial.
var _ = SynchronizedBeforeSuite(func(ctx SpecContext) []byte {
	connect(ctx)
	for _, node := range suite.nodes {
		awaitAgent(ctx, node)
	}
	if !suite.description.Has(CanSeeForeignDisks) {
		return nil
	}
	foreign, err := suite.hosts.ForeignDigests(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(foreign).NotTo(BeEmpty())
	suite.foreign = foreign
	return nil
}, func(ctx SpecContext, _ []byte) {
	if suite.client == nil {
		connect(ctx)
	}
}, NodeTimeout(10*time.Minute))

// connect fills in the suite.
func connect(ctx context.Context) {
	GinkgoHelper()
	var err error
	suite.description, err = ReadDescription(options.description)
	Expect(err).NotTo(HaveOccurred())
	suite.config, err = clientcmd.BuildConfigFromFlags("", options.kubeconfig)
	Expect(err).NotTo(HaveOccurred())
	suite.config.QPS, suite.config.Burst = -1, 0
	scheme := runtime.NewScheme()
	Expect(workload.AddToScheme(scheme)).To(Succeed())
	Expect(appsv1.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	suite.hosts, err = openHosts(suite.description)
	Expect(err).NotTo(HaveOccurred())
	suite.client, err = client.NewWithWatch(suite.config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())

	nodes := &corev1.NodeList{}
	Expect(suite.client.List(ctx, nodes)).To(Succeed())
	for _, node := range nodes.Items {
		suite.nodes = append(suite.nodes, node.Name)
	}
	slices.Sort(suite.nodes)
	Expect(suite.nodes).NotTo(BeEmpty())
}

// Nothing is left of what the suite made, and every byte of every foreign disk is as
// it was: the reason Berth may be trusted at all, so it is asked once more after
// everything else. The first process runs this, the last one to end.
var _ = SynchronizedAfterSuite(func() {}, func(ctx SpecContext) {
	if suite.client == nil {
		return
	}
	expectNothingLeft(ctx)
	if suite.foreign == nil {
		return
	}
	after, err := suite.hosts.ForeignDigests(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(after).To(Equal(suite.foreign), "a foreign disk was written to")
	AddReportEntry("foreign disks unchanged", fmt.Sprintf("%d disks, bit by bit", len(after)), ReportEntryVisibilityAlways)
}, NodeTimeout(10*time.Minute))

func openHosts(description *Description) (Hosts, error) {
	switch description.Hosts {
	case "testbed":
		return OpenTestbed()
	case "docker":
		return DockerHosts{}, nil
	default:
		return NoHosts{}, nil
	}
}

// needs skips the spec where the cluster cannot do what it needs.
func needs(can ...Capability) {
	GinkgoHelper()
	for _, capability := range can {
		if !suite.description.Has(capability) {
			Skip(fmt.Sprintf("the cluster cannot do %q (see its description)", capability))
		}
	}
}

// newSpace makes a namespace for one spec and takes it away afterwards.
func newSpace(ctx context.Context) *workload.Space {
	GinkgoHelper()
	name := "e2e-" + strings.ToLower(rand5())
	space := &workload.Space{Client: suite.client, Namespace: name, Image: suite.description.Image}
	Expect(space.Ensure(ctx)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		if CurrentSpecReport().Failed() {
			AddReportEntry("state at failure", describeState(ctx, space), ReportEntryVisibilityFailureOrVerbose)
		}
		Expect(space.Remove(ctx)).To(Succeed())
	}, NodeTimeout(patience))
	return space
}

// exec runs a script on a node and returns what it printed.
func execOn(ctx context.Context, node, script string) string {
	GinkgoHelper()
	out, err := suite.hosts.Exec(ctx, node, script)
	Expect(err).NotTo(HaveOccurred())
	return out
}
