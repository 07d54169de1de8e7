#!/bin/bash
# The desktop's whole system as one squashfs file, without Docker and, where the machine lets an ordinary user, without
# root. Debian or a relative of it only: elsewhere bring the file (desktop.container.image).
#   rootfs.sh CONTEXT OUT.squashfs [core|full [WAY ...]]
# CONTEXT: a folder with what the Dockerfile copies, and owners.bpf. The ways to install packages that belong to root,
# tried in this order, the surest first:
#   root        as root
#   unshare     in a user namespace with the user's subordinate ids
#   single      in a user namespace where root is the one user: a filter of system calls (owners.bpf) answers that a
#               file's owner was changed, and nothing is
#   fakechroot  with libraries that pretend to be root: slower, but asks nothing of the kernel
set -euo pipefail
[ $# -ge 2 ] || { sed -n '4s/^# *//p' "$0" >&2; exit 2; }
context=$(realpath "$1") out=$(realpath -m "$2") apps=${3:-full}
ways=("${@:4}")
if [ ${#ways[@]} = 0 ]; then
    if [ "$(id -u)" = 0 ]; then ways=(root); else ways=(unshare single fakechroot); fi
fi
for program in mmdebstrap mksquashfs; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install mmdebstrap squashfs-tools" >&2; exit 1; }
done

lists=("$context/apt-image.txt")
[ "$apps" = core ] || lists+=("$context/apt-image-full.txt")
packages=$(sed 's/#.*//' "${lists[@]}" | xargs | tr ' ' ',')
# This machine's own mirrors of the suite, if it knows any; else Debian's.
sources=$(apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) main' 'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian \(deb .* bookworm[^ ]* main\)$/\1/p' | sort -u)
[ -n "$sources" ] || sources=$(printf 'deb http://deb.debian.org/debian %s main\n' bookworm bookworm-updates &&
    echo 'deb http://deb.debian.org/debian-security bookworm-security main')

# Says what keeps a way from being tried; nothing if it can be.
obstacle() {
    case $1 in
    root) [ "$(id -u)" = 0 ] || echo "this is not root" ;;
    unshare)
        if ! command -v newuidmap >/dev/null; then
            echo "newuidmap is missing (apt-get install uidmap)"
        elif ! grep -Eqs "^($(id -un)|$(id -u)):" /etc/subuid; then
            echo "/etc/subuid has no line for $(id -un) (usermod --add-subuids 100000-165535 $(id -un))"
        elif ! unshare --user true 2>/dev/null; then
            echo "user namespaces are forbidden"
        fi
        ;;
    single)
        if [ ! -s "$context/owners.bpf" ]; then
            echo "there is no filter for this processor"
        elif ! command -v bwrap >/dev/null; then
            echo "bwrap is missing (apt-get install bubblewrap)"
        elif ! alone true 2>/dev/null; then
            echo "user namespaces are forbidden"
        fi
        ;;
    fakechroot)
        if ! command -v fakechroot >/dev/null || ! command -v fakeroot >/dev/null; then
            echo "apt-get install fakechroot fakeroot"
        fi
        ;;
    *) echo "there is no such way" ;;
    esac
}

# Run a command as root of a user namespace that has no other user.
alone() {
    bwrap --unshare-user --unshare-pid --unshare-ipc --uid 0 --gid 0 --cap-add ALL --seccomp 9 --bind / / --proc /proc \
        --dev /dev -- "$@" 9<"$context/owners.bpf"
}

# Write the system to a tar file: install TAR MODE [OPTION ...]
install_system() {
    mmdebstrap --quiet --mode="$2" --variant=minbase --format=tar \
        --dpkgopt=force-unsafe-io --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/help/*' \
        --include="$packages" --skip=output/dev \
        --customize-hook='mkdir -p "$1/opt/build"' --customize-hook="copy-in $(printf '%q ' "$context"/*) /opt/build" \
        --customize-hook='chroot "$1" sh /opt/build/finish.sh' \
        "${@:3}" bookworm "$1" - <<<"$sources"
}
export -f install_system
export context packages sources

try() {
    case $1 in
    single)
        # mmdebstrap would mount more than such a root may: it gets what bubblewrap has mounted.
        alone bash -c 'install_system "$@"' - "$2" root --skip=chroot/mount \
            --extract-hook='mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc"' \
            --customize-hook='umount -l "$1/dev" "$1/proc"'
        ;;
    *) install_system "$2" "$1" ;;
    esac
}

mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.part"' EXIT
said=
for way in "${ways[@]}"; do
    why=$(obstacle "$way")
    if [ -z "$why" ]; then
        echo "installing packages, way '$way'"
        if try "$way" "$work/root.tar"; then break; fi
        why="it failed, see above"
    fi
    echo "way '$way': $why"
    said="$said $way: $why;"
    way=
done
[ -n "$way" ] || { echo "no way to install packages as this user:${said%;}" >&2; exit 1; }

# An empty /dev in place of the device files, which only root could unpack.
mkdir "$work/dev" && tar --append --file="$work/root.tar" --owner=0 --group=0 --mode=755 --directory="$work" ./dev
mksquashfs - "$out.part" -tar -comp zstd -Xcompression-level 6 -root-mode 0755 -root-uid 0 -root-gid 0 -noappend -quiet -no-progress <"$work/root.tar"
mv "$out.part" "$out"
echo "way '$way': $(du -m "$out" | cut -f1) MB"
