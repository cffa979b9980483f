// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/mount"
)

// The parameters of a StorageClass.
const (
	// ParameterMode is lvm, device or hostpath. Required.
	ParameterMode = "mode"
	// ParameterPool names a PoolSet, or several with commas between. Required in the modes
	// lvm and hostpath.
	ParameterPool = "pool"
	// ParameterFSType is ext4, xfs or btrfs, the key that every CSI driver shares.
	ParameterFSType = reservedPrefix + "fstype"
	// ParameterMkfsOptions are options of mkfs, as on a command line.
	ParameterMkfsOptions = "mkfsOptions"
	// ParameterWipe is zero, discard, cryptoErase, signatures or none.
	ParameterWipe = "wipe"
	// ParameterEncryption is luks2.
	ParameterEncryption = "encryption"
	// ParameterRequireQuota is true or false.
	ParameterRequireQuota = "requireQuota"
	// ParameterPathTemplate is where volumes lie, as {{.PVC.Namespace}}/{{.PVC.Name}}.
	ParameterPathTemplate = "pathTemplate"
	// ParameterRetainFor is a duration, as 72h.
	ParameterRetainFor = "retainFor"
	// ParameterDeviceSelector is the YAML or JSON text of a DeviceSelector.
	ParameterDeviceSelector = "deviceSelector"

	// reservedPrefix is what Kubernetes keeps for itself among class parameters.
	reservedPrefix = "csi.storage.k8s.io/"
)

// defaultFSType is made when the class names none.
const defaultFSType = "ext4"

var (
	allowedParameters = []string{ParameterMode, ParameterPool, ParameterFSType, ParameterMkfsOptions, ParameterWipe, ParameterEncryption, ParameterRequireQuota, ParameterRetainFor, ParameterPathTemplate, ParameterDeviceSelector}
	allowedModes      = []string{string(berth.ModeLVM), string(berth.ModeDevice), string(berth.ModeHostpath)}
	allowedFSTypes    = []string{"ext4", "xfs", "btrfs"}
	allowedEncryption = []string{string(berth.EncryptionLUKS2)}
	allowedWipes      = []string{string(berth.WipeZero), string(berth.WipeDiscard), string(berth.WipeCryptoErase), string(berth.WipeSignatures), string(berth.WipeNone)}

	// aliases are what other drivers call the same thing.
	aliases = map[string]string{
		"fstype": ParameterFSType, "filesystem": ParameterFSType, "fs": ParameterFSType,
		"poolset": ParameterPool, "poolname": ParameterPool, "storagepool": ParameterPool,
		"volgroup": ParameterPool, "vgpattern": ParameterPool, "device-class": ParameterPool,
		"encrypted": ParameterEncryption, "luks": ParameterEncryption, "encrypt": ParameterEncryption,
		"quota": ParameterRequireQuota, "xfsquota": ParameterRequireQuota, "ext4quota": ParameterRequireQuota,
		"retention": ParameterRetainFor, "keepfor": ParameterRetainFor, "retainperiod": ParameterRetainFor,
		"pathpattern": ParameterPathTemplate, "path": ParameterPathTemplate,
		"type": ParameterMode, "storage": ParameterMode, "castype": ParameterMode,
		"devicename": ParameterDeviceSelector, "selector": ParameterDeviceSelector,
	}
)

// Parameters are what a StorageClass asks for.
type Parameters struct {
	Mode berth.Mode
	// Pools are the names of PoolSets, none in mode device. A volume is made in the one that
	// has the most room on its node.
	Pools []string
	// FSType of filesystem volumes; empty in mode hostpath.
	FSType string
	// MkfsOptions of filesystem volumes, in words.
	MkfsOptions []string
	Wipe        berth.WipePolicy
	// Encryption of the volume; empty for none.
	Encryption berth.Encryption
	// RequireQuota takes only pools of mode hostpath that enforce sizes.
	RequireQuota bool
	// RetainFor keeps what deleted volumes of mode hostpath hold for that long; 0 not at all.
	RetainFor time.Duration
	// PathTemplate says where volumes of mode hostpath lie below the root of their pool.
	PathTemplate PathTemplate
	// DeviceSelector narrows the disks of mode device; nil takes any usable one.
	DeviceSelector *berth.DeviceSelector
}

// ParseParameters reads the parameters of a StorageClass strictly: what is not
// known is refused, not ignored, because a misspelt "wipe" would leave data
// behind. Every problem is named at once; the error is a Refusal.
func ParseParameters(params map[string]string) (Parameters, error) {
	out := Parameters{
		Mode:  berth.Mode(params[ParameterMode]),
		Pools: poolNames(params[ParameterPool]),
		Wipe:  berth.WipePolicy(params[ParameterWipe]),
	}
	problems := unknownKeys(params)
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	switch {
	case out.Mode == "":
		add("parameter %q is missing; set it to one of %s", ParameterMode, strings.Join(allowedModes, ", "))
	case !slices.Contains(allowedModes, string(out.Mode)):
		add("parameter %s: unknown mode %q%s; it is one of %s", ParameterMode, out.Mode,
			didYouMean(string(out.Mode), allowedModes), strings.Join(allowedModes, ", "))
	default:
		problems = append(problems, out.checkPools(params)...)
	}

	fsType, set := params[ParameterFSType]
	switch {
	case out.Mode == berth.ModeHostpath:
		if set {
			add("parameter %s has no meaning in mode hostpath: a directory has the filesystem of its pool; remove it", ParameterFSType)
		}
	case fsType == "":
		out.FSType = defaultFSType
	case !slices.Contains(allowedFSTypes, fsType):
		add("parameter %s: unknown filesystem %q%s; it is one of %s", ParameterFSType, fsType,
			didYouMean(fsType, allowedFSTypes), strings.Join(allowedFSTypes, ", "))
	default:
		out.FSType = fsType
	}

	if words := strings.Fields(params[ParameterMkfsOptions]); len(words) > 0 {
		out.MkfsOptions = words
	}
	if _, set := params[ParameterMkfsOptions]; set && out.Mode == berth.ModeHostpath {
		add("parameter %s has no meaning in mode hostpath, which makes no filesystem; remove it", ParameterMkfsOptions)
	} else if out.FSType != "" {
		if err := mount.CheckMkfsOptions(out.FSType, out.MkfsOptions); err != nil {
			add("parameter %s: %v", ParameterMkfsOptions, err)
		}
	}

	if out.Wipe == "" {
		out.Wipe = berth.WipeZero
	} else if !slices.Contains(allowedWipes, string(out.Wipe)) {
		add("parameter %s: unknown policy %q%s; it is one of %s", ParameterWipe, out.Wipe,
			didYouMean(string(out.Wipe), allowedWipes), strings.Join(allowedWipes, ", "))
	}

	problems = append(problems, out.setEncryption(params)...)
	problems = append(problems, out.setQuota(params)...)
	problems = append(problems, out.setRetention(params)...)
	problems = append(problems, out.setPathTemplate(params)...)

	if text, ok := params[ParameterDeviceSelector]; ok {
		selector, err := parseDeviceSelector(text)
		switch {
		case out.Mode != berth.ModeDevice && slices.Contains(allowedModes, string(out.Mode)):
			add("parameter %s is for mode device; in mode %s the PoolSet chooses the disks: remove it", ParameterDeviceSelector, out.Mode)
		case err != nil:
			add("parameter %s: %v", ParameterDeviceSelector, err)
		default:
			out.DeviceSelector = selector
		}
	}
	problems = append(problems, out.requireCryptoErase()...)
	if len(problems) > 0 {
		return Parameters{}, refuse("%s", strings.Join(problems, "; "))
	}
	return out, nil
}

// setQuota reads whether sizes must be enforced, and says what is wrong with it.
func (p *Parameters) setQuota(params map[string]string) (problems []string) {
	text, set := params[ParameterRequireQuota]
	switch {
	case !set:
		return nil
	case p.Mode != berth.ModeHostpath && slices.Contains(allowedModes, string(p.Mode)):
		return []string{fmt.Sprintf("parameter %s is for mode hostpath: a volume of mode %s ends where its device does; remove it", ParameterRequireQuota, p.Mode)}
	case text != "true" && text != "false":
		return []string{fmt.Sprintf("parameter %s: %q is not allowed; it is one of true, false", ParameterRequireQuota, text)}
	}
	p.RequireQuota = text == "true"
	return nil
}

// maxRetainFor is as long as anybody may mean; a longer one is a slip of the pen.
const maxRetainFor = 87600 * time.Hour

// setRetention reads for how long deleted volumes are kept, and says what is wrong with it.
func (p *Parameters) setRetention(params map[string]string) (problems []string) {
	text, set := params[ParameterRetainFor]
	if !set {
		return nil
	}
	if p.Mode != berth.ModeHostpath && slices.Contains(allowedModes, string(p.Mode)) {
		return []string{fmt.Sprintf("parameter %s is for mode hostpath: a deleted volume of mode %s is wiped (parameter %s), and nothing of it is kept; remove it, or use reclaimPolicy: Retain",
			ParameterRetainFor, p.Mode, ParameterWipe)}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxRetainFor || d%time.Second != 0 {
		return []string{fmt.Sprintf("parameter %s: %q is not allowed; it is a duration in whole seconds from 0s to %s, as 72h (a week is 168h)",
			ParameterRetainFor, text, strings.TrimSuffix(maxRetainFor.String(), "0m0s"))}
	}
	p.RetainFor = d
	return nil
}

// requireCryptoErase narrows the disks to those that can be erased as the class wants:
// otherwise one would be taken that nobody could have after the first volume.
func (p *Parameters) requireCryptoErase() (problems []string) {
	switch {
	case p.Wipe != berth.WipeCryptoErase:
		return nil
	case p.Mode != berth.ModeDevice:
		return []string{fmt.Sprintf("parameter %s: %s is for mode device: only a whole disk has a key of its own", ParameterWipe, p.Wipe)}
	case p.DeviceSelector == nil:
		p.DeviceSelector = &berth.DeviceSelector{}
	}
	if given := p.DeviceSelector.CryptoErase; given != nil && !*given {
		return []string{fmt.Sprintf("parameter %s: cryptoErase is false, and %s is %s", ParameterDeviceSelector, ParameterWipe, p.Wipe)}
	}
	yes := true
	p.DeviceSelector.CryptoErase = &yes
	return nil
}

// mostPools of a class: each of them is asked for its room whenever the room is published.
const mostPools = 32

// poolNames are the names in a list, as they stand there; none in an empty one.
func poolNames(list string) (names []string) {
	if list == "" {
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		names = append(names, strings.TrimSpace(name))
	}
	return names
}

// checkPools says what is wrong with the pools in a known mode.
func (p Parameters) checkPools(params map[string]string) (problems []string) {
	_, set := params[ParameterPool]
	if p.Mode == berth.ModeDevice {
		if set {
			return []string{fmt.Sprintf("parameter %s has no meaning in mode device, which takes whole disks; remove it, or narrow the disks with %s",
				ParameterPool, ParameterDeviceSelector)}
		}
		return nil
	}
	switch {
	case len(p.Pools) == 0:
		return []string{fmt.Sprintf("parameter %q is missing; mode %s needs the name of a PoolSet (kubectl get poolsets)", ParameterPool, p.Mode)}
	case len(p.Pools) > mostPools:
		return []string{fmt.Sprintf("parameter %s: it names %d PoolSets, and at most %d are allowed", ParameterPool, len(p.Pools), mostPools)}
	}
	for i, name := range p.Pools {
		if len(validation.IsDNS1123Label(name)) > 0 {
			problems = append(problems, fmt.Sprintf("parameter %s: %q cannot be the name of a PoolSet (lower-case letters, digits and '-', at most 63)", ParameterPool, name))
		} else if slices.Contains(p.Pools[:i], name) {
			problems = append(problems, fmt.Sprintf("parameter %s: %q is there twice", ParameterPool, name))
		}
	}
	return problems
}

// pool is the only one, "" where there are several to choose from or none.
func (p Parameters) pool() string {
	if len(p.Pools) == 1 {
		return p.Pools[0]
	}
	return ""
}

// unknownKeys says of each key that is not allowed what was probably meant.
func unknownKeys(params map[string]string) []string {
	var problems []string
	for key := range params {
		switch {
		case slices.Contains(allowedParameters, key):
		case slices.Contains(secretParameters, key):
			// Its place is checked with the encryption.
		case strings.HasPrefix(key, reservedPrefix) && (strings.HasSuffix(key, "-secret-name") || strings.HasSuffix(key, "-secret-namespace")):
			problems = append(problems, fmt.Sprintf("parameter %q: Berth uses no such secret; remove it", key))
		default:
			problems = append(problems, fmt.Sprintf("parameter %q is not known%s; allowed are %s",
				key, didYouMean(key, allowedParameters), strings.Join(allowedParameters, ", ")))
		}
	}
	slices.Sort(problems)
	return problems
}

func parseDeviceSelector(text string) (*berth.DeviceSelector, error) {
	selector := &berth.DeviceSelector{}
	if err := yaml.UnmarshalStrict([]byte(text), selector); err != nil {
		return nil, fmt.Errorf("is not a DeviceSelector in YAML or JSON: %w", err)
	}
	if _, err := discovery.SelectDisk(selector); err != nil {
		return nil, err
	}
	if selector.MinSize != nil && selector.MaxSize != nil && selector.MinSize.Cmp(*selector.MaxSize) > 0 {
		return nil, fmt.Errorf("minSize %s is larger than maxSize %s: no disk can match", selector.MinSize, selector.MaxSize)
	}
	return selector, nil
}

// didYouMean returns `; did you mean "x"?` for the nearest of the candidates, or
// nothing when none is near.
func didYouMean(word string, candidates []string) string {
	plain := func(s string) string { return strings.ToLower(s[strings.LastIndexByte(s, '/')+1:]) }
	w := plain(word)
	if to, ok := aliases[w]; ok && slices.Contains(candidates, to) {
		return fmt.Sprintf("; did you mean %q?", to)
	}
	best, distance := "", max(2, len(w)/3)+1
	if len(w) > 64 {
		return "" // nobody misspells that badly, and the distance is quadratic
	}
	for _, c := range candidates {
		if d := editDistance(w, plain(c)); d < distance {
			best, distance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is the number of insertions, deletions and replacements of bytes
// that make b out of a (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// WithFSType returns the parameters with another filesystem, or a Refusal. A CSI
// volume capability names one so.
func (p Parameters) WithFSType(fsType string) (Parameters, error) {
	switch {
	case p.Mode == berth.ModeHostpath:
		return p, refuse("mode hostpath has the filesystem of its pool; do not ask for %q", fsType)
	case !slices.Contains(allowedFSTypes, fsType):
		return p, refuse("unknown filesystem %q; it is one of %s", fsType, strings.Join(allowedFSTypes, ", "))
	}
	if err := mount.CheckMkfsOptions(fsType, p.MkfsOptions); err != nil {
		return p, refuse("parameter %s is for %s: %v", ParameterMkfsOptions, p.FSType, err)
	}
	p.FSType = fsType
	return p, nil
}
