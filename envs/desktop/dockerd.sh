#!/bin/bash
# A Docker daemon of our own, beside (or without) the system's; as root.
#   dockerd.sh start STATE_DIR [further dockerd flags]    returns when it answers
#   dockerd.sh stop STATE_DIR
# Clients: export DOCKER_HOST=unix://STATE_DIR/docker.sock
# Published ports bind to loopback, containers on the default bridge reach nothing outside, /dev/shm holds 1 GiB:
# so desktops made by OSWorld's own provider, which asks for none of this, are as closed in as ours.
# Two daemons share the bridge docker0 (and one with --bridge=none removes it): where the system's runs, use that.
set -euo pipefail
usage() {
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
}
[ $# -ge 2 ] || usage
action=$1 state=$(realpath -m "$2")
shift 2
pid_file=$state/docker.pid

running() {
    [ -s "$pid_file" ] && pid=$(<"$pid_file") && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]
}

start() {
    if running; then
        echo "the daemon of $state runs already (pid $pid)"
        return
    fi
    mkdir -p "$state"
    rm -f "$pid_file"
    # Without systemd as process 1 nobody could make its slices.
    [ -d /run/systemd/system ] || set -- --exec-opt native.cgroupdriver=cgroupfs "$@"
    nohup setsid dockerd --data-root "$state/data" --exec-root "$state/exec" --pidfile "$pid_file" \
        -H "unix://$state/docker.sock" --storage-driver overlay2 \
        --ip 127.0.0.1 --ip-masq=false --default-shm-size 1g "$@" >"$state/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 300); do
        if DOCKER_HOST=unix://$state/docker.sock docker version >/dev/null 2>&1; then
            echo "export DOCKER_HOST=unix://$state/docker.sock"
            return
        fi
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    echo "the daemon did not start; the end of $state/dockerd.log:" >&2
    tail -n 5 "$state/dockerd.log" >&2
    exit 1
}

stop() {
    running || return 0
    kill "$pid"
    for _ in $(seq 300); do
        [ -d "/proc/$pid" ] || break
        sleep 0.1
    done
    if [ -d "/proc/$pid" ]; then
        echo "the daemon of $state (pid $pid) does not end" >&2
        exit 1
    fi
    # What it leaves mounted would keep the folder from being removed.
    { grep -o " $state/[^ ]*" /proc/mounts || true; } | sort -r | while read -r mounted; do
        umount "$mounted" || echo "still mounted: $mounted" >&2
    done
}

case $action in
start) start "$@" ;;
stop) stop ;;
*) usage ;;
esac
