#!/bin/bash
# Debian base image without an image registry: debootstrap, then docker import. As root; a minute, 200 MB.
#   base_image.sh [TAG] [SUITE]
# Elsewhere debian:bookworm-slim does as well (build argument BASE_IMAGE).
set -euo pipefail
tag=${1:-arpo-base:bookworm} suite=${2:-bookworm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase "$suite" "$work/root" >"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    exit 1
}
rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
tar --directory "$work/root" --create . | docker import --change 'CMD ["/bin/bash"]' - "$tag" >/dev/null
echo "$tag"
