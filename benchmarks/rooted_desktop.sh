#!/bin/sh
# sh benchmarks/rooted_desktop.sh ROOT: lets programs of this machine start desktops whose own lie below ROOT (as root).
# ROOT holds a Debian 12 with the packages of envs/desktop/apt.txt, unpacked by `dpkg-deb -x`, and merged folders
# (bin -> usr/bin and so on). Afterwards put /opt/rooted_desktop before all else on PATH; see rooted_desktop.py.
set -eu
root=$1 place=/run/rooted_desktop
mkdir -p $place /opt/rooted_desktop
mountpoint -q $place || { mount --bind $place $place; mount --make-private $place; }
: > $place/mounts
# A change of root, not chroot: bubblewrap's user namespaces are refused in a chroot.
unshare --mount=$place/mounts --propagation private sh -euc "
    mount --rbind $root $root
    mount -t proc proc $root/proc
    mount --rbind /dev $root/dev
    mount --rbind /sys $root/sys
    mount --rbind /tmp $root/tmp
    mount -t tmpfs tmpfs $root/run
    cd $root
    mkdir -p mnt
    pivot_root . mnt
    cd /
    umount -l /mnt"
printf '#!/bin/sh\nexec nsenter --mount=%s -- /usr/bin/setpriv "$@"\n' $place/mounts > /opt/rooted_desktop/setpriv
chmod +x /opt/rooted_desktop/setpriv
[ -e /usr/lib/chromium ] || ln -s "$root/usr/lib/chromium" /usr/lib/chromium
