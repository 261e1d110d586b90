#!/usr/bin/env python3
"""Load for a running `glimpse serve` (or any server that speaks OpenAI's chat completions), and what came of it.

Usage: serve_load.py --url URL [--model ID] [--clients N | --rate R] [flags]

Closed loop (--clients): every client asks its next question when its answer has come. Open loop (--rate): questions arrive at
random as people's do (Poisson), whether or not answers have come. Questions and pictures follow from --seed alone, so that two
runs ask the same. Every picture is new but for --seen of the questions, which are about one that was asked about before.
Prints a line of JSON: requests per second, tokens per second, and percentiles in ms of the time to the first token, between tokens
and to the end.
"""
import argparse
import asyncio
import base64
import json
import random
import struct
import sys
import time
import zlib
from urllib.parse import urlsplit

WORDS = "what which colour letter number shape is on the left right square circle near large small and of this picture".split()


def png(seed, size):
    """A picture of coloured stripes: another one for every seed, quick to pack."""
    colours = random.Random(seed)
    rows, row = [], b""
    for y in range(size):
        if y % 8 == 0:
            row = b"\0" + b"".join(bytes(colours.choices(range(256), k=3)) * 16 for _ in range((size + 15) // 16))[: 3 * size]
        rows.append(row)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows), 1)) + chunk(b"IEND", b"")


def picture(seed, size):
    return "data:image/png;base64," + base64.b64encode(png(seed, size)).decode()


class Questions:
    """Request bodies, the same for the same seed."""

    def __init__(self, flags):
        self.flags, self.random, self.next_picture, self.seen = flags, random.Random(flags.seed), flags.seed * 1_000_003, []
        self.asked = 0

    def __next__(self):
        flags = self.flags
        long = self.random.random() < flags.long
        text = " ".join(self.random.choices(WORDS, k=flags.words * (8 if long else 1))) + "?"
        content = [{"type": "text", "text": text}]
        if flags.picture:
            self.asked += 1
            again = self.seen and int(self.asked * flags.seen) > int((self.asked - 1) * flags.seen)
            if not again:
                self.next_picture += 1
                self.seen.append(self.next_picture)
            number = self.random.choice(self.seen[-flags.clients * 2:]) if again else self.next_picture
            content.insert(0, {"type": "image_url", "image_url": {"url": picture(number, flags.picture)}})
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": flags.tokens, "stream": True, "temperature": 0,
                "stream_options": {"include_usage": True}, "ignore_eos": True}
        if flags.model:
            body["model"] = flags.model
        if flags.pruning:
            body["pruning"] = json.loads(flags.pruning)
        return json.dumps(body).encode()


class Client:
    """One connection, which stays open."""

    def __init__(self, flags):
        parts = urlsplit(flags.url)
        self.host, self.port, self.key = parts.hostname, parts.port or 80, flags.key
        self.reader = self.writer = None

    async def lines(self):
        """Of an answer's body, whose pieces are chunks."""
        while size := int(await self.reader.readline(), 16):
            for line in (await self.reader.readexactly(size + 2))[:-2].split(b"\n"):
                yield line
        await self.reader.readline()

    async def ask(self, body):
        """Times of the tokens since the start, and what the server told of it."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        start = time.perf_counter()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        self.writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n{key}"
                          f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = int((await self.reader.readline()).split()[1])
        length = None
        while (line := await self.reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        if status != 200:
            raise RuntimeError(f"{status}: {(await self.reader.readexactly(length or 0))[:300].decode()}")
        times, about = [], {"cached": 0}
        async for line in self.lines():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event.get("glimpse"):
                about.update({name: event["glimpse"][name] for name in ("visual_tokens", "kept_tokens", "kv_bytes", "times_ms")})
            if event.get("usage"):
                about["tokens"] = event["usage"]["completion_tokens"]
                about["cached"] = event["usage"]["prompt_tokens_details"]["cached_tokens"]
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter() - start)
        about["total"] = time.perf_counter() - start
        return times, about

    def close(self):
        if self.writer:
            self.writer.close()


def percentiles(values):
    ordered = sorted(values)
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 2) for p in (50, 90, 99)} if ordered else {}


async def run(flags):
    questions = Questions(flags)
    done, errors = [], []
    warm = Client(flags)
    for _ in range(flags.warm):
        await warm.ask(next(questions))
    warm.close()
    bodies = [next(questions) for _ in range(flags.requests)]
    bodies.reverse()
    begin = time.perf_counter()

    async def one(client, body):
        try:
            done.append(await client.ask(body))
        except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
            errors.append(str(error))
            client.close()
            client.reader = client.writer = None
        if sys.stderr.isatty():
            print(f"\r{len(done)} of {flags.requests}, {len(errors)} failed", end="", file=sys.stderr)

    async def closed():
        client = Client(flags)
        while bodies:
            await one(client, bodies.pop())
        client.close()

    async def arrival(body):
        client = Client(flags)
        await one(client, body)
        client.close()

    if flags.rate:
        arrivals, tasks = random.Random(flags.seed + 1), []
        while bodies:
            tasks.append(asyncio.create_task(arrival(bodies.pop())))
            await asyncio.sleep(arrivals.expovariate(flags.rate))
        await asyncio.gather(*tasks)
    else:
        await asyncio.gather(*(closed() for _ in range(flags.clients)))
    seconds = time.perf_counter() - begin
    visual = sum(about.get("visual_tokens", 0) for _, about in done)
    tokens = sum(about.get("tokens", 0) for _, about in done)
    return {"model": flags.model, "requests": len(done), "failed": len(errors), "first_error": errors[0] if errors else None,
            "seconds": round(seconds, 2), "requests_per_s": round(len(done) / seconds, 4), "tokens_per_s": round(tokens / seconds, 2),
            "first_token_ms": percentiles([times[0] for times, _ in done if times]),
            "between_tokens_ms": percentiles([b - a for times, _ in done for a, b in zip(times, times[1:])]),
            "end_ms": percentiles([about["total"] for _, about in done]),
            "visual_tokens": visual / max(len(done), 1), "kept": round(sum(about.get("kept_tokens", 0) for _, about in done) / visual, 4) if visual else None,
            "cached_answers": sum(about["cached"] > 0 for _, about in done)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="of the server, without /v1")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--model", default="", help="model id: the server's own, or a preset such as NAME+none")
    parser.add_argument("--pruning", default="", help='object "pruning" of every request, as JSON')
    parser.add_argument("--clients", type=int, default=4, help="that ask at the same time (4)")
    parser.add_argument("--rate", type=float, default=0, help="requests per second that arrive at random instead")
    parser.add_argument("--requests", type=int, default=48, help="number of requests that are timed (48)")
    parser.add_argument("--warm", type=int, default=1, help="requests before them, not timed (1)")
    parser.add_argument("--seen", type=float, default=0.5, help="part of the questions that is about a picture seen before (0.5)")
    parser.add_argument("--long", type=float, default=0.25, help="part of the questions that is eight times as long (0.25)")
    parser.add_argument("--words", type=int, default=12, help="words of a question (12)")
    parser.add_argument("--picture", type=int, default=224, help="width and height of the pictures in pixels; 0: none (224)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer (16)")
    parser.add_argument("--seed", type=int, default=1)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
