// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/command"
)

// The exit codes; see the package's documentation.
const (
	exitWell    = 0
	exitTrouble = 1
	exitUsage   = 2
	exitUnasked = 3
)

// Streams are where the plugin writes, and where it reads an answer. In is nil where nobody
// can be asked.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Options are those of every command.
type Options struct {
	// Kubeconfig and Context are as kubectl has them; empty means its defaults.
	Kubeconfig, Context string
	// Namespace of the claim that is asked about; empty means that of the context.
	Namespace string
	// SystemNamespace is where Berth is installed.
	SystemNamespace string
	// Output is table, wide or json; of support-bundle the file.
	Output string
	// Of forget-node. Confirm is the node's name once more; empty asks for it. DryRun changes
	// nothing. DisksDestroyed says that none of the node's disks will ever be seen again.
	Confirm                string
	DryRun, DisksDestroyed bool
	// Of orphans adopt and purge, whose Confirm is a token. Yes changes what was planned, Withdraw
	// takes a request back, and Wait is how long the agent has for its answer.
	Yes, Withdraw bool
	Wait          time.Duration
	// Of orphans adopt. Claim is what gets the volume, as namespace/name, and FSType what is on it.
	Claim, FSType string
	// Machine, of forget-node, is the /etc/machine-id of a host that another one has replaced under
	// the node's name: what was on it is forgotten, and the node lives on.
	Machine string
	// Of import, which Yes does, too. All is for all volumes. Provisioner is
	// what the other one calls itself, Config its ConfigMap, as namespace/name; empty where its
	// manifests have it. Pool is a PoolSet and StorageClass the class that claims get; empty
	// for what fits; StorageClass is of orphans adopt, too. Timeout bounds each wait.
	All                                     bool
	Provisioner, Config, Pool, StorageClass string
	Timeout                                 time.Duration
}

// Cluster is a connection to a cluster.
type Cluster struct {
	Client client.Client
	// Namespace that the user works in.
	Namespace string
	// Logs opens the log of one container; nil where there are none to be had.
	Logs func(ctx context.Context, pod client.ObjectKey, o *corev1.PodLogOptions) (io.ReadCloser, error)
	// Version asks the API server for its version; nil where there is none to ask.
	Version func() (string, error)
}

// Connector connects to the cluster that the options name.
type Connector func(Options) (Cluster, error)

// Connect connects as kubectl does.
func Connect(o Options) (Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context})
	restConfig, err := config.ClientConfig()
	if err != nil {
		return Cluster{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	namespace, _, err := config.Namespace()
	if err != nil {
		return Cluster{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return NewCluster(restConfig, namespace)
}

// NewCluster connects to the cluster of a configuration. namespace is that which the user
// works in.
func NewCluster(config *rest.Config, namespace string) (Cluster, error) {
	scheme, err := newScheme()
	if err != nil {
		return Cluster{}, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return Cluster{}, fmt.Errorf("connect to the cluster: %w", err)
	}
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return Cluster{}, fmt.Errorf("connect to the cluster: %w", err)
	}
	return Cluster{
		Client: c, Namespace: namespace,
		Logs: func(ctx context.Context, pod client.ObjectKey, o *corev1.PodLogOptions) (io.ReadCloser, error) {
			return typed.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, o).Stream(ctx)
		},
		Version: func() (string, error) {
			v, err := typed.Discovery().ServerVersion()
			if err != nil {
				return "", err
			}
			return v.GitVersion, nil
		},
	}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), berth.AddToScheme(scheme))
}

// plugin is one run.
type plugin struct {
	client  client.Client
	cluster Cluster
	o       Options
	in      io.Reader
	out     io.Writer
	errs    io.Writer
	now     time.Time
}

// subcommand is one of the commands.
type subcommand struct {
	name, arguments, summary string
	run                      func(*plugin, context.Context, []string) (troubled bool, err error)
	least, most              int // arguments
	// output checks --output; nil is a table.
	output func(string) error
}

func subcommands() []subcommand {
	return []subcommand{
		{name: "status", summary: "Say how Berth, its pools, volumes and disks are, and what is wrong", run: (*plugin).status},
		{name: "disks", summary: "List the disks of all nodes, and why those that are not used cannot be", run: (*plugin).disks},
		{name: "pools", summary: "List the pools, how full they are, and what is wrong with them", run: (*plugin).pools},
		{name: "volumes", summary: "List the volumes with their claims and the pods that use them", run: (*plugin).volumes},
		{
			name: "why", arguments: "pvc/NAME | disk/NAME | node/NAME", summary: "Say in words why a claim, a disk or a node does not do what is expected",
			run: (*plugin).why, least: 1, most: 1,
		},
		{
			name: "orphans", arguments: "list | adopt NODE/POOL/UID | NODE/DISK [--claim=NAMESPACE/NAME] [--yes] [--withdraw] | purge NODE/POOL/UID | NODE/DISK [--yes] [--confirm=TOKEN | --withdraw]",
			summary: "List what is left over: volumes, disks and PersistentVolumes of which the other half is missing; and use a volume of them again, or remove it, in two phases",
			run:     (*plugin).orphans, least: 1, most: 2, //nolint:mnd // adopt or purge, and what
		},
		{
			name: "forget-node", arguments: "NODE [--machine=ID] [--dry-run] [--confirm=NODE] [--disks-destroyed]",
			summary: "Say what is lost with a node that will not come back, and remove what Berth has of it", run: (*plugin).forgetNode, least: 1, most: 1,
		},
		{
			name: "import", arguments: "local-path [CLAIM | pv/NAME | --all [--yes]]",
			summary: "Print what stands for the configuration of local-path-provisioner; or move its volumes to Berth without copying", run: (*plugin).importFrom, least: 1, most: 2,
		},
		{
			name: "support-bundle", arguments: "[-o FILE.tar.gz]", summary: "Collect what Berth's developers need to see, without secrets, into one file",
			run: (*plugin).supportBundle, output: bundleOutput,
		},
		{name: "version", summary: "Print the version of the plugin"},
	}
}

var errUsage = errors.New("wrong usage")

// Run runs the plugin with its arguments and returns its exit code.
func Run(ctx context.Context, args []string, streams Streams, connect Connector) int {
	o := Options{}
	flags := pflag.NewFlagSet("kubectl berth", pflag.ContinueOnError)
	flags.SetOutput(streams.Err)
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "path of the kubeconfig")
	flags.StringVar(&o.Context, "context", "", "context of the kubeconfig")
	flags.StringVarP(&o.Namespace, "namespace", "n", "", "namespace of the claim")
	flags.StringVar(&o.SystemNamespace, "berth-namespace", "berth-system", "namespace that Berth is installed in")
	flags.StringVarP(&o.Output, "output", "o", outputTable, "table, wide or json; of support-bundle the file, - for standard output")
	flags.StringVar(&o.Confirm, "confirm", "", "of forget-node: the name of the node once more; without it the name is asked for. Of orphans purge: the token of the quarantine")
	flags.BoolVar(&o.DryRun, "dry-run", false, "of forget-node: say what is lost and removed, and change nothing")
	flags.BoolVar(&o.DisksDestroyed, "disks-destroyed", false, "of forget-node: none of its disks will ever be seen again, so that no record of them is kept")
	flags.BoolVar(&o.Yes, "yes", false, "of orphans adopt, orphans purge and import: do what it plans; without it nothing is changed")
	flags.BoolVar(&o.Withdraw, "withdraw", false, "of orphans purge: take the request back, and let what is in quarantine go; of orphans adopt: ask for it no more, as long as it is not done")
	flags.StringVar(&o.Claim, "claim", "", "of orphans adopt: NAMESPACE/NAME of the claim that gets the volume, which may be made later; without it any that names it")
	flags.StringVar(&o.FSType, "fs-type", "", "of orphans adopt: what is on a logical volume or a disk: ext4, xfs, btrfs, or none for a raw block volume; the node looks whether it is so")
	flags.DurationVar(&o.Wait, "wait", defaultWait, "of orphans adopt and purge: how long to wait for the agent's answer")
	flags.StringVar(&o.Machine, "machine", "", "of forget-node: forget only what was on the host of this /etc/machine-id, which another one has replaced under the node's name")
	flags.BoolVar(&o.All, "all", false, "of import: all volumes of the other provisioner")
	flags.StringVar(&o.Provisioner, "provisioner", localPathProvisioner, "of import: name that the other provisioner has in its StorageClasses")
	flags.StringVar(&o.Config, "config", "", "of import: ConfigMap with its config.json, as NAMESPACE/NAME; without it local-path-config in local-path-storage or kube-system")
	flags.StringVar(&o.Pool, "pool", "", "of import: PoolSet that takes the volumes; without it that whose root lies nearest")
	flags.StringVar(&o.StorageClass, "storage-class", "", "of import: StorageClass that the claims get; without it berth- and the name of their own. Of orphans adopt: the one of the claim; without it none")
	flags.DurationVar(&o.Timeout, "timeout", defaultTimeout, "of import: time to wait for each step")
	flags.Usage = func() { usage(streams.Err, flags) }
	switch err := flags.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return exitWell
	case err != nil:
		return complain(streams, fmt.Errorf("%w: %w", errUsage, err))
	}
	sub, rest, err := choose(flags.Args(), o)
	if err == nil {
		err = checkFlags(flags, sub.name)
	}
	if err != nil {
		return complain(streams, err)
	}
	if sub.name == "version" {
		fmt.Fprintln(streams.Out, command.Version())
		return exitWell
	}
	cluster, err := connect(o)
	if err != nil {
		return complain(streams, err)
	}
	if o.Namespace == "" {
		o.Namespace = cluster.Namespace
	}
	if o.Namespace == "" {
		o.Namespace = corev1.NamespaceDefault
	}
	p := &plugin{client: cluster.Client, cluster: cluster, o: o, in: streams.In, out: streams.Out, errs: streams.Err, now: time.Now()}
	troubled, err := sub.run(p, ctx, rest)
	switch {
	case err != nil:
		return complain(streams, err)
	case troubled:
		return exitTrouble
	}
	return exitWell
}

// choose finds the command that is asked for.
func choose(args []string, o Options) (subcommand, []string, error) {
	all := subcommands()
	names := make([]string, len(all))
	for i, sub := range all {
		names[i] = sub.name
	}
	if len(args) == 0 {
		return subcommand{}, nil, fmt.Errorf("%w: name a command, one of %s", errUsage, strings.Join(names, ", "))
	}
	i := slices.Index(names, args[0])
	if i < 0 {
		return subcommand{}, nil, fmt.Errorf("%w: there is no command %q; there are %s", errUsage, args[0], strings.Join(names, ", "))
	}
	if rest := len(args) - 1; rest < all[i].least || rest > all[i].most {
		return subcommand{}, nil, fmt.Errorf("%w: kubectl berth %s %s", errUsage, all[i].name, all[i].arguments)
	}
	purges := all[i].name == "orphans" && args[1] == "purge"
	adopts := all[i].name == "orphans" && args[1] == "adopt"
	switch {
	case (o.DryRun || o.DisksDestroyed || o.Machine != "" || o.Confirm != "" && !purges) && all[i].name != "forget-node":
		return subcommand{}, nil, fmt.Errorf("%w: --confirm, but for orphans purge, --dry-run, --disks-destroyed and --machine are of forget-node only", errUsage)
	case (o.Yes && all[i].name != "import" || o.Withdraw) && !purges && !adopts:
		return subcommand{}, nil, fmt.Errorf("%w: --yes, but for import, and --withdraw are of orphans adopt and orphans purge only", errUsage)
	case (o.Claim != "" || o.FSType != "") && !adopts:
		return subcommand{}, nil, fmt.Errorf("%w: --claim and --fs-type are of orphans adopt only", errUsage)
	case o.StorageClass != "" && !adopts && all[i].name != "import":
		return subcommand{}, nil, fmt.Errorf("%w: --storage-class is of import and orphans adopt only", errUsage)
	}
	check := all[i].output
	if check == nil {
		check = tableOutput
	}
	if err := check(o.Output); err != nil {
		return subcommand{}, nil, err
	}
	return all[i], args[1:], nil
}

const (
	outputTable = "table"
	defaultWait = 30 * time.Second

	localPathProvisioner = "rancher.io/local-path"
	defaultTimeout       = 2 * time.Minute
)

func tableOutput(output string) error {
	if !slices.Contains([]string{outputTable, "wide", "json"}, output) {
		return fmt.Errorf("%w: --output is %q; it is one of table, wide, json", errUsage, output)
	}
	return nil
}

func usage(w io.Writer, flags *pflag.FlagSet) {
	fmt.Fprintln(w, "Usage: kubectl berth COMMAND [flags]\n\nCommands:")
	for _, sub := range subcommands() {
		fmt.Fprintf(w, "  %-14s %s\n", sub.name, sub.summary)
		if sub.arguments != "" {
			fmt.Fprintf(w, "  %-14s   %s\n", "", sub.arguments)
		}
	}
	fmt.Fprintf(w, "\nFlags:\n%s", flags.FlagUsages())
}

func complain(streams Streams, err error) int {
	fmt.Fprintf(streams.Err, "kubectl berth: %v\n", err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitUnasked
}

// checkFlags refuses the flags that are of import, for other commands.
func checkFlags(flags *pflag.FlagSet, command string) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		if command != "import" && slices.Contains([]string{"all", "provisioner", "config", "pool", "timeout"}, f.Name) {
			err = fmt.Errorf("%w: --%s is of import only", errUsage, f.Name)
		}
	})
	return err
}
