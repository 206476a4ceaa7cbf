#!/usr/bin/env bash
# Makes an add-on repository for Home Assistant in the folder that is named: the add-on, and in it the sources that
# are committed here. Copy what is in it to /addons of Home Assistant, or push it to a repository of your own.
set -euo pipefail
target=${1:?usage: make-addon.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$target"
cp -r "$here/addons/." "$target/"
mkdir -p "$target/dtorrent/source"
git -C "$here/../.." archive HEAD | tar -x -C "$target/dtorrent/source"
echo "made $target"
