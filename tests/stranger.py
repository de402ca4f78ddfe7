"""A reader of results that knows NATS and nothing of Causeway: prints what comes, a JSON object a line.

    python tests/stranger.py nats://127.0.0.1:4222 'faces.decision.>' 3
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.aio.msg import Msg


async def read(address: str, subject: str, count: int) -> None:
    """Subscribes, and ends after so many messages."""
    connection = await nats.connect(address)
    subscription = await connection.subscribe(subject)
    for _ in range(count):
        message: Msg = await subscription.next_msg(timeout=60)
        told = {"subject": message.subject, "headers": message.headers, "data": json.loads(message.data)}
        print(json.dumps(told), flush=True)
    await connection.close()


asyncio.run(read(sys.argv[1], sys.argv[2], int(sys.argv[3])))
