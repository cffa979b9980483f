// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// redacted stands for what was taken out.
const redacted = "REDACTED"

// lastApplied repeats a whole object as somebody wrote it, with whatever was in it.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// shownAnnotations are the domains whose annotations are kept with their values: those of
// Berth and of Kubernetes. Anybody may write anything into the others.
var shownAnnotations = []string{"berth.dev", "kubernetes.io", "k8s.io"}

// secretWords are in the names of fields, flags and variables that hold a secret.
const secretWords = `password|passwd|passphrase|token|secret|credential|api[_-]?key|private[_-]?key|access[_-]?key|authorization`

var (
	secretName = regexp.MustCompile(`(?i)` + secretWords)
	// referenceName ends the names of fields that only say where a secret is.
	referenceName = regexp.MustCompile(`(?i)(name|namespace|ref|refs|seconds|policy)$`)
	// plainNames are the fields of what refers to a secret that hold none.
	plainNames = []string{"name", "namespace", "key", "path", "kind", "type", "apiVersion", "audience", "optional", "mountPath", "fieldPath"}

	// assignment is a name that sounds like a secret's, and its value, which is quoted (also in
	// JSON inside a string), or ends with the word: in flags, variables and logs.
	assignment = regexp.MustCompile(`(?i)(` + secretField + `)(\\*["']?\s*[:=]\s*)((?:\\+"[^"\\]*\\+"|"(?:[^"\\]|\\.)*"|'[^']*'))|(` + secretField + `)(\s*=\s*)((?:(?:bearer|basic)\s+)?[^\s,;}"'\\]+)`)
	// member is the same of YAML: a block of lines, a list, or whatever follows on the line.
	member    = regexp.MustCompile(`(?i)(` + secretField + `)(["']?[ \t]*:\s*)([|>][+-]?\d?[ \t]*(?:\n[ \t]+[^\n]*)+|-[ \t]+[^\n]*(?:\n[ \t]*-[ \t]+[^\n]*)*|[^\s"'\\{}\[\]][^\n"'\\{}\[\]]*)`)
	flagValue = regexp.MustCompile(`(?i)(--?[\w-]*(?:` + secretWords + `)[\w-]*)(\s+)([^\s-]\S*)`)

	// shapes are what is a secret whatever it is called.
	shapes = []*regexp.Regexp{
		regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`),
		regexp.MustCompile(`(?s)^.*-----END [A-Z0-9 ]*PRIVATE KEY-----`),                   // the end of one that was cut
		regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?`), // JSON Web Token
		regexp.MustCompile(`(?i)\bbearer\s+[A-Za-z0-9+/=._~-]{8,}`),
		regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), // bootstrap token of a node
		regexp.MustCompile(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`),
		regexp.MustCompile(`\bgh[pousr]_[A-Za-z0-9]{20,}`),
	}
	// userInfo is that of a URL.
	userInfo = regexp.MustCompile(`(://)[^/\s:@"']*:[^/\s@"']+@`)
)

// secretField is the name of a field, flag or variable with one of those words.
const secretField = `[\w./-]*(?:` + secretWords + `)[\w./-]*`

// isSecretName says whether what is called so holds a secret, and not only its name.
func isSecretName(name string) bool {
	return secretName.MatchString(name) && !referenceName.MatchString(name)
}

// namedParts are a match and its three groups: name, what is between, and value.
const namedParts = 4

// redactText takes out of a text what is a secret by its shape or by what stands before it. It
// takes out too much rather than too little.
func redactText(text string) string {
	for _, shape := range shapes {
		text = shape.ReplaceAllString(text, redacted)
	}
	text = userInfo.ReplaceAllString(text, "${1}"+redacted+"@")
	for _, named := range []*regexp.Regexp{assignment, member, flagValue} {
		text = named.ReplaceAllStringFunc(text, func(match string) string {
			parts := named.FindStringSubmatch(match)
			if parts[1] == "" && len(parts) > namedParts {
				parts = parts[namedParts-1:] // the other alternative
			}
			if !isSecretName(parts[1]) || strings.HasPrefix(parts[3], redacted) {
				return match
			}
			return parts[1] + parts[2] + redacted
		})
	}
	return text
}

// redactObject takes out of an object whatever may be a secret: values of environment
// variables, annotations of others, what is called like a secret, and what looks like one.
func redactObject(object map[string]any) { redactMap(object, false) }

// redactMap redacts a map; inSecret is whether it is the value of what sounds like a secret, so
// that its texts are kept only where they are known to say no more than where that is.
func redactMap(object map[string]any, inSecret bool) {
	delete(object, "managedFields")
	for key, value := range object {
		switch v := value.(type) {
		case string:
			hidden := isSecretName(key) || inSecret && !slices.Contains(plainNames, key) && !referenceName.MatchString(key)
			if hidden && v != "" {
				object[key] = redacted
				continue
			}
			object[key] = redactText(v)
		case map[string]any:
			if key == "annotations" {
				redactAnnotations(v)
				continue
			}
			redactMap(v, inSecret || isSecretName(key))
		case []any:
			redactList(v, key == "env", inSecret || isSecretName(key))
		}
	}
}

// redactList redacts a list; environment is whether it is one of environment variables.
func redactList(list []any, environment, inSecret bool) {
	afterFlag := false
	for i, value := range list {
		switch v := value.(type) {
		case string:
			if inSecret || afterFlag && !strings.HasPrefix(v, "-") {
				list[i] = redacted
			} else {
				list[i] = redactText(v)
			}
			afterFlag = strings.HasPrefix(v, "-") && !strings.Contains(v, "=") && isSecretName(v)
		case map[string]any:
			if _, set := v["value"]; set && environment {
				v["value"] = redacted
			}
			redactMap(v, inSecret)
		case []any:
			redactList(v, false, inSecret)
		}
	}
}

func redactAnnotations(annotations map[string]any) {
	delete(annotations, lastApplied)
	for key, value := range annotations {
		text := fmt.Sprint(value)
		domain, _, _ := strings.Cut(key, "/")
		shown := slices.ContainsFunc(shownAnnotations, func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) })
		if !shown || isSecretName(key) {
			annotations[key] = redacted
			continue
		}
		annotations[key] = redactText(text)
	}
}
