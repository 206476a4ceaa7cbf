#!/bin/sh
# A torrent client for dtorrent in twenty lines: each file of a directory is a complete torrent; its
# hash is derived from its name. It is read-only: every other method is answered with an error.
#
#     [servers.shelf]
#     client = "exec"
#     command = ["examples/client.sh", "/srv/shelf"]
while read -r line; do
    id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
    case $line in
    *'"method":"list"'*)
        rows=
        for file in "$1"/*; do
            [ -f "$file" ] || continue
            name=$(basename "$file" | tr -d '"\\[:cntrl:]')
            size=$(wc -c <"$file")
            hash=$(printf '%s' "$name" | sha1sum | cut -c1-40)
            rows="$rows${rows:+,}{\"hash\":\"$hash\",\"name\":\"$name\",\"length\":$size,\"active\":false,\"downloaded\":$size,\"uploaded\":0,\"path\":null}"
        done
        echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":[$rows]}"
        ;;
    *) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":{\"code\":-32601,\"message\":\"not here\"}}" ;;
    esac
done
