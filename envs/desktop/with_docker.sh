#!/bin/bash
# with_docker.sh COMMAND ...: run it with a Docker daemon: the one that answers (DOCKER_HOST or the system's), else, as
# root, one of our own that ends with the command and keeps its images in ARPO_DOCKER_STATE (/var/tmp/arpo-docker).
set -euo pipefail
state=${ARPO_DOCKER_STATE:-/var/tmp/arpo-docker}
if ! docker version >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ]; then
        echo "No Docker daemon answers: set DOCKER_HOST, or run this as root, which starts one of its own." >&2
        exit 1
    fi
    trap 'envs/desktop/dockerd.sh stop "$state"' EXIT
    cd "$(dirname "$0")/../.."
    envs/desktop/dockerd.sh start "$state" >/dev/null
    export DOCKER_HOST=unix://$state/docker.sock
fi
"$@"
