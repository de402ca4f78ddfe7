"""A worker that takes from a Redis list and pushes to the next, as tutorials have it: BRPOP, work, LPUSH. Nothing is acked and
nothing is kept on disk: what a worker holds when it dies is lost.

    usage: redis_lists.py STAGE SPEC.json      STAGE is capture, preprocess, extract, classify, cluster, or collect
"""

from __future__ import annotations

import json
import pickle
import sys
import time

import redis
import work

# Whom a stage gives to; a last stage gives to the list of outcomes.
TAKERS = {"capture": ["preprocess"], "preprocess": ["extract"], "extract": ["classify", "cluster"]}


def main(stage: str, spec: dict) -> None:
    """Runs a stage until it is killed; `capture` and `collect` end by themselves."""
    lists = redis.Redis(host="127.0.0.1", port=spec["port"])
    lists.ping()
    if stage == "collect":
        return collect(lists, spec)
    takers = TAKERS.get(stage, ["outcome"])
    if stage == "capture":
        for message in work.capture(spec):
            lists.lpush(takers[0], pickle.dumps(message, protocol=5))
        return None
    do = work.work_of(stage, spec)
    print("ready", flush=True)
    while True:
        _, body = lists.brpop(stage)
        for message in do(pickle.loads(body)):
            body = pickle.dumps(message, protocol=5)
            for taker in ["outcome"] if "done_at" in message else takers:
                lists.lpush(taker, body)


def collect(lists: redis.Redis, spec: dict) -> None:
    """Waits for all outcomes, looking seldom, and prints them; those that there are, once no more come."""
    count, since = -1, time.monotonic()
    while count < spec["outcomes"] and time.monotonic() < since + work.PATIENCE:
        time.sleep(0.05)
        if (now := lists.llen("outcome")) != count:
            count, since = now, time.monotonic()
    print(json.dumps([pickle.loads(body) for body in lists.lrange("outcome", 0, -1)]))


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        main(sys.argv[1], json.load(file))
