#!/bin/sh
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0

# Installs the Debian packages of apt-packages.txt that are missing, unattended,
# and says which. It is quick and silent when all are there.
set -eu

list=$(dirname "$0")/apt-packages.txt
missing=
# shellcheck disable=SC2013 # words are wanted, not lines
for package in $(sed 's/#.*//' "$list"); do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing:$missing" >&2
    echo "Install them as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "Installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends $missing; } > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "Installing the packages failed." >&2
    exit 1
fi
