#!/usr/bin/env python3
"""Reads dtorrent's events from NATS and proves that none is missing.

    pip install nats-py
    ./nats_consumer.py nats://localhost:4222 [COUNT]

A durable consumer continues where it stopped. `seq` counts up by one for each server and epoch (the part of
the id before the last `-`), over all events except `updated`; a redelivery is not above the last one. Exits
after COUNT events, or with 1 as soon as an event is missing.
"""

import asyncio
import json
import sys

import nats


async def main(url, count):
    client = await nats.connect(url)
    events = await client.jetstream().pull_subscribe("", durable="example-py", stream="DTORRENT_EVENTS")
    last = {}
    while count != 0:
        try:
            batch = await events.fetch(min(100, count) if count > 0 else 100, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in batch:
            event = json.loads(message.data)
            epoch, seq = event["id"].rsplit("-", 1)[0], event["seq"]
            if epoch in last and seq > last[epoch] + 1:
                sys.exit(f"{last[epoch] + 1} of {epoch} is missing")
            if seq > last.get(epoch, 0):
                last[epoch] = seq
                name = event["torrent"]["name"] if "torrent" in event else ""
                print(event["server"], seq, event["event_type"], name, flush=True)
            await message.ack()
            count -= 1
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else -1))
