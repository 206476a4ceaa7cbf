#!/usr/bin/env bash
# Installs what dtorrent is built and tested with besides Rust, if it is missing: a C compiler (for SQLite and
# ring), rTorrent, mosquitto, nginx, openssl, faketime, Python, and what makes and mounts a disk.
# Where it may not install, it says what is missing and fails.
#
#   scripts/install-peers.sh [PACKAGE…]       all that the tests need, or only these
set -euo pipefail

# The program that shows that a package is here.
declare -A program_of=(
    [build-essential]=cc
    [rtorrent]=rtorrent
    [mosquitto]=mosquitto
    [mosquitto-clients]=mosquitto_pub
    [nginx-light]=nginx
    [openssl]=openssl
    [faketime]=faketime
    [e2fsprogs]=mkfs.ext4
    [mount]=mount
    [python3]=python3
)

PATH="$PATH:/usr/sbin:/sbin"
wanted=("$@")
if [ ${#wanted[@]} -eq 0 ]; then
    wanted=("${!program_of[@]}")
fi

missing=()
for package in "${wanted[@]}"; do
    command -v "${program_of[$package]}" >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (Debian's names); this script knows only apt-get, so please install them" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "missing: ${missing[*]}; to install them: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
# Services that a package would start are of no use here: the tests start their own.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
