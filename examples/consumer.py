#!/usr/bin/env python3
"""A consumer that proves that it missed nothing.

    mosquitto_sub -V 5 -q 1 -i my-consumer -c -x 604800 -F %p \\
        -t 'dtorrent/+/event/+' -t 'dtorrent/+/torrent/+/event/+' | examples/consumer.py --state consumer.json

Every event but `updated` has a `seq`, which counts up by one for each server and epoch. One
number per server is all that has to be remembered: a number that is not above it is a redelivery, and
a number that skips one is a loss. An `id` is the server, the epoch and the number; a new epoch
starts at 1, after the bridge has lost its state (announced by `journal_reset`).

The broker queues messages while this is disconnected: `-i` and `-c` request that, `-x` limits it.
Exits with 1 as soon as an event is missing.
"""

import argparse
import json
import os
import sys


class Gap(Exception):
    pass


class Consumer:
    def __init__(self, path):
        self.path = path
        # server -> {"epoch": …, "seq": …, "past": [epochs that are over]}
        self.servers = {}
        if path and os.path.exists(path):
            with open(path) as file:
                self.servers = json.load(file)

    def take(self, event):
        """What to do with an event: "new", "repeat" or "conflated"; `Gap` if one before it is missing."""
        if event["seq"] is None:
            return "conflated"
        server, seq = event["server"], event["seq"]
        epoch = event["id"][len(server) + 1 :].split("-")[0]
        known = self.servers.get(server)
        if known is None:
            # Whoever comes later begins in the middle.
            self.servers[server] = {"epoch": epoch, "seq": seq, "past": []}
            return "new"
        if epoch in known["past"]:
            return "repeat"
        if epoch != known["epoch"]:
            print(f"{server}: a new epoch, {epoch}: the bridge has lost what it knew", flush=True)
            known["past"].append(known["epoch"])
            known["epoch"], known["seq"] = epoch, 0
        if seq <= known["seq"]:
            return "repeat"
        if seq != known["seq"] + 1:
            raise Gap(f"{server}: after {known['seq']} comes {seq}: {seq - known['seq'] - 1} missed")
        known["seq"] = seq
        return "new"

    def save(self):
        """After the work on the event is done: killed in between, the event comes again."""
        if self.path:
            with open(self.path + ".new", "w") as file:
                json.dump(self.servers, file)
            os.replace(self.path + ".new", self.path)


def work(event):
    """Here is the place for what is to be done with an event."""
    name = (event.get("torrent") or {}).get("name", "")
    print(f"{event['server']} {event['seq']} {event['event_type']} {name}".rstrip(), flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--state", help="file that remembers the numbers over a restart")
    consumer = Consumer(arguments.parse_args().state)
    repeats = 0
    for line in sys.stdin:
        event = json.loads(line)
        try:
            what = consumer.take(event)
        except Gap as gap:
            print(gap, file=sys.stderr)
            return 1
        if what == "repeat":
            repeats += 1
            print(f"{event['server']} {event['seq']} again", flush=True)
            continue
        if what == "new":
            work(event)
            consumer.save()
    for server, known in consumer.servers.items():
        print(f"{server}: nothing missed up to {known['seq']} of epoch {known['epoch']}, {repeats} repeats", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
