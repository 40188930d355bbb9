"""Publishes with the Python package `redis`, as a Python backend would.

    python3 publisher.py REDIS_URL[,REDIS_URL..] ROOMS MESSAGES PAUSE_MS

MESSAGES rounds of one message to each of the rooms `room-0` and so on, with a pause between rounds.
Several URLs are those of members of a Cluster. Prints how many proxies had the messages, each number
once.
"""

import json
import sys
import time

import redis


def main(url, rooms, messages, pause_ms):
    url, *others = url.split(",")
    if others:
        publish = redis.RedisCluster.from_url(url).spublish
    else:
        publish = redis.Redis.from_url(url).publish
    reached = set()
    for n in range(int(messages)):
        text = json.dumps({"by": "python", "n": n})
        for room in range(int(rooms)):
            reached.add(publish(f"steadfast:to:room:room-{room}", json.dumps({"text": text})))
        time.sleep(int(pause_ms) / 1000)
    print(json.dumps(sorted(reached)))


main(*sys.argv[1:])
