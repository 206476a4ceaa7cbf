#!/usr/bin/env python3
"""A torrent client for dtorrent in twenty lines: its torrents are the objects in a JSON file.

    [servers.attic]
    client = "exec"
    command = ["examples/client.py", "torrents.json"]
"""
import json
import sys

path = sys.argv[1]
methods = ["list", "pause", "resume", "remove", "add"]

for line in sys.stdin:
    request = json.loads(line)
    method, params = request["method"], request.get("params") or {}
    with open(path) as file:
        torrents = {torrent["hash"]: torrent for torrent in json.load(file)}
    answer = {"jsonrpc": "2.0", "id": request["id"], "result": None}
    if method == "initialize":
        answer["result"] = {"protocol": 1, "name": "twenty lines", "methods": methods}
    elif method == "list":
        answer["result"] = list(torrents.values())
    elif method == "add":
        new = {"name": params["hash"], "length": 0, "active": params["start"], "downloaded": 0, "uploaded": 0}
        torrents.setdefault(params["hash"], {**new, "hash": params["hash"], "path": None})
    elif method not in methods or params["hash"] not in torrents:
        del answer["result"]
        answer["error"] = {"code": -32601 if method not in methods else 1, "message": f"cannot {method}"}
    elif method == "remove":
        del torrents[params["hash"]]
    else:
        torrents[params["hash"]]["active"] = method == "resume"
        torrents[params["hash"]]["status"] = "paused" if method == "pause" else None
    if method in methods[1:]:
        with open(path, "w") as file:
            json.dump(list(torrents.values()), file)
    print(json.dumps(answer), flush=True)
