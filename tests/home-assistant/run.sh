#!/usr/bin/env bash
# Starts Home Assistant itself against the bridge, see run.py. Makes a Python environment for it on the first run:
# some 600 MB in target/home-assistant. Needs Python 3.13; a newer release of Home Assistant than this needs 3.14.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=${HOME_ASSISTANT:-2025.4.4}
python=${PYTHON:-python3.13}
environment=target/home-assistant/$release
if [ ! -x "$environment/bin/hass" ]; then
    command -v "$python" >/dev/null || { echo "$python is missing: PYTHON names another one" >&2; exit 1; }
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet "homeassistant==$release" "paho-mqtt==2.1.0"
fi
cargo build --locked --all-features
exec "$environment/bin/python" tests/home-assistant/run.py "$PWD/target/debug/dtorrent"
