# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Prints the targets of a Makefile that carry a "## text", below the headings
# that lines of "##@ text" make.
BEGIN { FS = ":.*## " }
/^##@ / { printf "%s%s\n", heading++ ? "\n" : "", substr($0, 5) }
/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $1, $2 }
