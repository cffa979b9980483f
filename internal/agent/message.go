// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import "strings"

// longestMessage, in bytes, is what a status says of one thing: of the 32768 that the API allows
// a condition. The rest is in the log.
const longestMessage = 1024

// forStatus makes any text fit for a status. What a program has printed, or what was cut in the
// middle of a letter, need not be UTF-8: the API server would store something else, which then
// differs from what is to be said each time it is looked at.
func forStatus(message string) string {
	if len(message) > longestMessage {
		return strings.ToValidUTF8(message[:longestMessage], "") + "…"
	}
	return strings.ToValidUTF8(message, "\uFFFD")
}
