"""A worker on JetStream with nats-py: pulls, works, publishes and waits for the ack, then acks. With `window` = 1 it publishes
one message at a time; else it publishes all that a pull gave at once and waits for their acks together.

    usage: jetstream.py STAGE SPEC.json      STAGE is setup, capture, preprocess, extract, classify, cluster, or collect
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time

import nats
import work
from nats.errors import TimeoutError as NothingCame
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

# What a stage takes from, and which stages give to somebody.
FROM = {"preprocess": "capture", "extract": "preprocess", "classify": "extract", "cluster": "extract"}
GIVERS = ("capture", "preprocess", "extract")
# Messages a pull asks for where they are handled one by one.
PULL = 16


async def main(stage: str, spec: dict) -> None:
    """Runs a stage until it is killed; `setup`, `capture` and `collect` end by themselves."""
    client = await nats.connect(f"nats://127.0.0.1:{spec['port']}")
    streams = client.jetstream()
    if stage == "setup":
        await setup(streams)
    elif stage == "capture":
        await capture(streams, spec)
    elif stage == "collect":
        await collect(streams, spec)
    else:
        await take(streams, stage, spec)
    await client.close()


async def setup(streams) -> None:
    """A stream for each giver, kept until all takers have acked, with their durables; and one for outcomes."""
    for giver in GIVERS:
        interest = RetentionPolicy.INTEREST
        await streams.add_stream(StreamConfig(giver, subjects=[giver], retention=interest, storage=StorageType.FILE))
        for taker in (taker for taker, giver_ in FROM.items() if giver_ == giver):
            await streams.pull_subscribe(giver, durable=taker, stream=giver)
    await streams.add_stream(StreamConfig("outcome", subjects=["outcome"], storage=StorageType.FILE))


async def capture(streams, spec: dict) -> None:
    """Publishes what is captured, one by one or a window at once."""
    waiting: list[bytes] = []
    for message in work.capture(spec):
        waiting.append(pickle.dumps(message, protocol=5))
        if len(waiting) == spec["window"]:
            await asyncio.gather(*(streams.publish("capture", body) for body in waiting))
            waiting.clear()
    await asyncio.gather(*(streams.publish("capture", body) for body in waiting))


async def take(streams, stage: str, spec: dict) -> None:
    """Pulls, works, publishes, acks."""
    do = work.work_of(stage, spec)
    pull = await streams.pull_subscribe(FROM[stage], durable=stage, stream=FROM[stage])
    print("ready", flush=True)
    while True:
        try:
            messages = await pull.fetch(max(spec["window"], PULL), timeout=5)
        except NothingCame:
            continue
        if spec["window"] == 1:
            for message in messages:
                for subject, body in given(stage, do, message.data):
                    await streams.publish(subject, body)
                await message.ack()
        else:
            publishes = [item for message in messages for item in given(stage, do, message.data)]
            await asyncio.gather(*(streams.publish(subject, body) for subject, body in publishes))
            await asyncio.gather(*(message.ack() for message in messages))


def given(stage: str, do: work.Work, body: bytes) -> list[tuple[str, bytes]]:
    """What a message gives, with its subject."""
    return [
        ("outcome" if "done_at" in message else stage, pickle.dumps(message, protocol=5))
        for message in do(pickle.loads(body))
    ]


async def collect(streams, spec: dict) -> None:
    """Waits for all outcomes, looking seldom, and prints them; those that there are, once no more come."""
    count, since = -1, time.monotonic()
    while count < spec["outcomes"] and time.monotonic() < since + work.PATIENCE:
        await asyncio.sleep(0.05)
        if (now := (await streams.stream_info("outcome")).state.messages) != count:
            count, since = now, time.monotonic()
    pull = await streams.pull_subscribe("outcome", durable="collect", stream="outcome")
    outcomes: list[dict] = []
    while len(outcomes) < count:
        messages = await pull.fetch(500, timeout=5)
        outcomes += [pickle.loads(message.data) for message in messages]
        await asyncio.gather(*(message.ack() for message in messages))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        asyncio.run(main(sys.argv[1], json.load(file)))
