#!/bin/bash
# The desktop's whole system as one squashfs file, without Docker and, where the machine lets an ordinary user, without
# root. Debian or a relative of it only: elsewhere bring the file (desktop.container.image).
#   rootfs.sh CONTEXT OUT.squashfs [core|full]    CONTEXT: a folder with what the Dockerfile copies
# Needs mmdebstrap and squashfs-tools, and one of: root; newuidmap and subordinate ids; fakechroot.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }
context=$(realpath "$1") out=$(realpath -m "$2") apps=${3:-full}
for program in mmdebstrap mksquashfs; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install mmdebstrap squashfs-tools" >&2; exit 1; }
done

# Ways to install packages owned by root, the surest first.
if [ "$(id -u)" = 0 ]; then
    mode=root
elif command -v newuidmap >/dev/null && grep -qs "^$(id -un):" /etc/subuid && unshare --user true 2>/dev/null; then
    mode=unshare
elif command -v fakechroot >/dev/null && command -v fakeroot >/dev/null; then
    mode=fakechroot
else
    echo "no way to install packages as this user: apt-get install uidmap, with a line in /etc/subuid, or fakechroot and fakeroot" >&2
    exit 1
fi

lists=("$context/apt-image.txt")
[ "$apps" = core ] || lists+=("$context/apt-image-full.txt")
packages=$(sed 's/#.*//' "${lists[@]}" | xargs | tr ' ' ',')
# This machine's own mirrors of the suite, if it knows any; else Debian's.
sources=$(apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) main' 'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian \(deb .* bookworm[^ ]* main\)$/\1/p' | sort -u)
[ -n "$sources" ] || sources=$(printf 'deb http://deb.debian.org/debian %s main\n' bookworm bookworm-updates &&
    echo 'deb http://deb.debian.org/debian-security bookworm-security main')

echo "mmdebstrap in mode $mode"
mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.part"' EXIT
mmdebstrap --quiet --mode="$mode" --variant=minbase --format=tar \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/help/*' \
    --include="$packages" --skip=output/dev \
    --customize-hook='mkdir -p "$1/opt/build"' --customize-hook="copy-in $(printf '%q ' "$context"/*) /opt/build" \
    --customize-hook='chroot "$1" sh /opt/build/finish.sh' \
    bookworm "$work/root.tar" - <<<"$sources"
mksquashfs - "$out.part" -tar -comp zstd -root-mode 0755 -root-uid 0 -root-gid 0 -p "dev d 755 0 0" -noappend -quiet -no-progress <"$work/root.tar"
mv "$out.part" "$out"
