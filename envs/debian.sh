#!/bin/sh
# Install Debian packages: as root at once, else print the one line to run.
#   debian.sh [LIST ...]    lists of package names; by default what desktops need
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- envs/desktop/apt.txt
wanted=$(sed 's/#.*//' "$@")
missing=
for package in $wanted; do
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
    echo "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet=2
    # shellcheck disable=SC2086  # a list of words
    apt-get install --quiet=2 --yes --no-install-recommends $missing >/dev/null
else
    echo "These Debian packages are missing. Run this line once, then the same command again:" >&2
    echo "    sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
