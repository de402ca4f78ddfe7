"""A reader of results that knows NATS and nothing of Causeway: prints what comes, a JSON object a line; with a key also what is kept.

    python tests/stranger.py nats://127.0.0.1:4222 'faces.decision.>' 3
    python tests/stranger.py nats://127.0.0.1:4222 'faces.decision.>' 3 dashboard.nk faces_classify
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg


def tell(message: Msg) -> None:
    """Prints a message."""
    told = {"subject": message.subject, "headers": message.headers, "data": json.loads(message.data)}
    print(json.dumps(told), flush=True)


async def read(connection: Client, subject: str, count: int) -> None:
    """Subscribes, and ends after so many messages."""
    subscription = await connection.subscribe(subject)
    for _ in range(count):
        tell(await subscription.next_msg(timeout=60))


async def read_kept(connection: Client, stream: str, count: int) -> None:
    """Asks for so many of those that are kept."""
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    asked = {"seq": 1, "next_by_subj": ">", "batch": count}
    await connection.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(asked).encode(), reply=inbox)
    for _ in range(count):
        message = await subscription.next_msg(timeout=60)
        headers = message.headers or {}
        kept = {"subject": headers["Nats-Subject"], "headers": headers, "data": json.loads(message.data)}
        print(json.dumps(kept), flush=True)


async def main(address: str, subject: str, count: int, key: str | None = None, stream: str | None = None) -> None:
    """Reads what comes, then what is kept."""
    connection = await nats.connect(address, nkeys_seed=key)
    await read(connection, subject, count)
    if stream:
        await read_kept(connection, stream, count)
    await connection.close()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:6]))
