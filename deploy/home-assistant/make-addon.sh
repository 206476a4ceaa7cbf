#!/usr/bin/env bash
# Creates an add-on repository for Home Assistant in the given directory: the add-on with the committed
# sources of this version. Copy its contents to /addons of Home Assistant, or push them to a repository of your own.
set -euo pipefail
target=${1:?usage: make-addon.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$target"
cp -r "$here/addons/." "$target/"
mkdir -p "$target/dtorrent/source"
git -C "$here/../.." archive HEAD | tar -x -C "$target/dtorrent/source"
echo "made $target"
