// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// The parameters that name the Secret with the passphrase of an encrypted volume, the keys
// that every CSI driver shares. Templates in them are filled in for each claim.
const (
	ParameterStageSecretName       = reservedPrefix + "node-stage-secret-name"
	ParameterStageSecretNamespace  = reservedPrefix + "node-stage-secret-namespace"
	ParameterExpandSecretName      = reservedPrefix + "node-expand-secret-name"
	ParameterExpandSecretNamespace = reservedPrefix + "node-expand-secret-namespace"
)

var secretParameters = []string{
	ParameterStageSecretName, ParameterStageSecretNamespace, ParameterExpandSecretName, ParameterExpandSecretNamespace,
}

// setEncryption reads the encryption, and says what is wrong with it and with Secrets that
// nothing needs.
func (p *Parameters) setEncryption(params map[string]string) (problems []string) {
	encryption, set := params[ParameterEncryption]
	p.Encryption = berth.Encryption(encryption)
	switch {
	case !set:
		for _, key := range secretParameters {
			if _, set := params[key]; set {
				problems = append(problems, fmt.Sprintf("parameter %q: without %s Berth uses no secrets; remove it, or set %s: %s",
					key, ParameterEncryption, ParameterEncryption, berth.EncryptionLUKS2))
			}
		}
	case !slices.Contains(allowedEncryption, encryption):
		problems = append(problems, fmt.Sprintf("parameter %s: unknown encryption %q%s; it is %s, or not set",
			ParameterEncryption, encryption, didYouMean(encryption, allowedEncryption), strings.Join(allowedEncryption, ", ")))
	case p.Mode == berth.ModeHostpath:
		problems = append(problems, fmt.Sprintf("parameter %s needs a block device of the volume's own, which mode hostpath has not; remove it, or use mode lvm or device",
			ParameterEncryption))
	}
	return problems
}

// Secrets are where kubelet finds what a volume is opened with; nil for what is not
// encrypted.
type Secrets struct{ Stage, Expand *corev1.SecretReference }

// SecretsOf finds the Secrets that a class names for a claim. Growth takes the one for
// staging where the class names none of its own. The error is a Refusal.
func SecretsOf(params map[string]string, encryption berth.Encryption, pvName string, claim *corev1.PersistentVolumeClaim) (Secrets, error) {
	if encryption == "" {
		return Secrets{}, nil
	}
	fill := template{pvName: pvName, claim: claim}
	stage, err := secretOf(params, ParameterStageSecretName, ParameterStageSecretNamespace, fill)
	if err != nil {
		return Secrets{}, err
	}
	if stage == nil {
		return Secrets{}, refuse("parameter %s is %s, and no Secret has its passphrase: set %s and %s",
			ParameterEncryption, encryption, ParameterStageSecretName, ParameterStageSecretNamespace)
	}
	expand, err := secretOf(params, ParameterExpandSecretName, ParameterExpandSecretNamespace, fill)
	if err != nil {
		return Secrets{}, err
	}
	if expand == nil {
		expand = stage.DeepCopy()
	}
	return Secrets{Stage: stage, Expand: expand}, nil
}

func secretOf(params map[string]string, nameKey, namespaceKey string, fill template) (*corev1.SecretReference, error) {
	name, hasName := params[nameKey]
	namespace, hasNamespace := params[namespaceKey]
	switch {
	case !hasName && !hasNamespace:
		return nil, nil
	case name == "" || namespace == "":
		return nil, refuse("parameters %s and %s name one Secret: set both or none", nameKey, namespaceKey)
	}
	name, err := fill.in(name, true)
	if err != nil {
		return nil, refuse("parameter %s: %v", nameKey, err)
	}
	// A claim's author must not choose whose Secrets are read.
	namespace, err = fill.in(namespace, false)
	if err != nil {
		return nil, refuse("parameter %s: %v", namespaceKey, err)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return nil, refuse("parameter %s: %q cannot be the name of a Secret: %s", nameKey, name, problems[0])
	}
	if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 {
		return nil, refuse("parameter %s: %q cannot be the name of a namespace: %s", namespaceKey, namespace, problems[0])
	}
	return &corev1.SecretReference{Name: name, Namespace: namespace}, nil
}

var (
	placeholder      = regexp.MustCompile(`\$\{[^}]*\}?`)
	annotationHolder = regexp.MustCompile(`^\$\{pvc\.annotations\['([^']+)'\]\}$`)
)

// template fills in what external-provisioner fills in too, so that classes read alike.
type template struct {
	pvName string
	claim  *corev1.PersistentVolumeClaim
}

// in returns the text with its placeholders filled in; ofClaim allows those whose value is
// the choice of whoever made the claim.
func (t template) in(text string, ofClaim bool) (string, error) {
	values := map[string]string{"${pv.name}": t.pvName, "${pvc.namespace}": t.claim.Namespace}
	known := "${pv.name} and ${pvc.namespace}"
	if ofClaim {
		values["${pvc.name}"] = t.claim.Name
		known = "${pv.name}, ${pvc.namespace}, ${pvc.name} and ${pvc.annotations['KEY']}"
	}
	var err error
	filled := placeholder.ReplaceAllStringFunc(text, func(holder string) string {
		if value, ok := values[holder]; ok {
			return value
		}
		if found := annotationHolder.FindStringSubmatch(holder); found != nil && ofClaim {
			if value, ok := t.claim.Annotations[found[1]]; ok {
				return value
			}
			err = fmt.Errorf("the claim has no annotation %q", found[1])
			return ""
		}
		err = fmt.Errorf("%s is not known here; there are %s", holder, known)
		return ""
	})
	return filled, err
}
