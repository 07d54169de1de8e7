#!/bin/sh
# No second user can be had here: what sudo runs stays the same user's (files of the home folder, no
# packages).
while [ $# -gt 0 ]; do
    case $1 in
    -u | -p | -g) shift 2 ;;
    --) shift && break ;;
    -*) shift ;;
    *=*) export "$1" && shift ;;
    *) break ;;
    esac
done
exec "$@"
