#!/usr/bin/env python3
"""Writes ring.json beside this file: owners of keys, found without the proxy's code.

The rule, read anew: a backend of weight w has 1024 * w points; point n stands at XXH3-64 (seed 0)
of the id in UTF-8, one zero byte, and n as four bytes, least significant first. A key stands at
XXH3-64 of its UTF-8 bytes. It belongs to the first point that is not before it; after the last
point comes the first. Where two points coincide, the smaller id (by bytes) has the place. The
"walk" of a key is the order in which backends come into question for it.

Needs the package `xxhash`. Run it only to add cases: what it once wrote holds for ever.
"""

import bisect
import json
import pathlib
import random

import xxhash


def place(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data, 0)


def circle(fleet):
    taken = {}
    for backend_id, weight in fleet:
        raw = backend_id.encode()
        for number in range(1024 * weight):
            at = place(raw + b"\x00" + number.to_bytes(4, "little"))
            if at not in taken or raw < taken[at].encode():
                taken[at] = backend_id
    ordered = sorted(taken)
    return ordered, [taken[at] for at in ordered]


def walk(ordered, owners, at):
    start = bisect.bisect_left(ordered, at)
    return list(dict.fromkeys(owners[start:] + owners[:start]))


FLEETS = {
    "alone": [("a", 1)],
    "two": [("a", 1), ("b", 1)],
    "ten": [(f"b{n}", 1) for n in range(10)],
    "weights": [("small", 1), ("middle", 2), ("large", 5)],
    "odd ids": [("10.0.0.1:9001", 1), ("A", 1), ("a", 1), ("_", 1), ("eu-west.room_7:80", 2), ("x" * 64, 1)],
    "one inside another": [("a", 1), ("aa", 1), ("a.", 1), ("a0", 1)],
    "many": [(f"node-{n:03}", 1 + n % 3) for n in range(70)],
}

PLAIN_KEYS = [
    "",
    "0",
    "a",
    "room",
    "lobby",
    "Lobby",
    "user/42?x=1&y=2",
    " spaced out ",
    "tab\tand\nline",
    "naïve café",
    "комната",
    "部屋",
    "🦀",
    "e\u0301 is not \u00e9",
    "\u0000",
    "\ufeffmark",
    "k" * 16,
    "k" * 17,
    "k" * 128,
    "k" * 129,
    "k" * 240,
    "k" * 241,
    "k" * 512,
]


def keys_of(fleet):
    yield from PLAIN_KEYS
    chance = random.Random(1)
    for _ in range(20):
        yield f"room-{chance.randrange(10**6)}"
    # The very bytes of a point stand at its place; numbers below 128 keep them valid UTF-8.
    for backend_id, _ in fleet[:6]:
        for number in (0, 1, 127):
            yield f"{backend_id}\u0000{chr(number)}\u0000\u0000\u0000"


def main():
    cases = []
    for name, fleet in FLEETS.items():
        ordered, owners = circle(fleet)
        keys = []
        for key in keys_of(fleet):
            at = place(key.encode())
            keys.append({"key": key, "position": f"{at:016x}", "walk": walk(ordered, owners, at)[:12]})
        backends = [{"id": backend_id, "weight": weight} for backend_id, weight in fleet]
        cases.append({"name": name, "backends": backends, "keys": keys})
    lines = ",\n".join(
        "{" + f'"name": {json.dumps(case["name"])}, "backends": {json.dumps(case["backends"])}, "keys": [\n'
        + ",\n".join("  " + json.dumps(key) for key in case["keys"]) + "\n]}"
        for case in cases
    )
    text = f"[\n{lines}\n]\n"
    json.loads(text)
    pathlib.Path(__file__).with_name("ring.json").write_text(text)


main()
