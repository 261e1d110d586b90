"""Asks a question about each of many pictures, on a Ray cluster (the one of $RAY_ADDRESS, else this machine).

    python batch_ray.py rows.jsonl answers --image-root pictures --actors 8 --cpus 16 --model DIR

A row is {"id": 1, "question": "...", "image": "a.jpg"}. The same command again goes on where an earlier one was stopped.
"""
import argparse
import json
from pathlib import Path

import glimpse.ray

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("rows", type=Path)
arguments.add_argument("out", type=Path)
arguments.add_argument("--image-root", default="")
arguments.add_argument("--model", default="", help="the built-in one if not given")
arguments.add_argument("--actors", type=int, default=1, help="engines at work")
arguments.add_argument("--cpus", type=int, default=1, help="of each")
arguments.add_argument("--batch", type=int, default=256, help="rows that an engine takes at once")
args = arguments.parse_args()

glimpse.ray.ask_many(args.rows, args.out, actors=args.actors, num_cpus=args.cpus, batch_size=args.batch, id="id", image_root=args.image_root,
                     engine={"model": args.model}, request={"max_new_tokens": 64})

answers = [json.loads(line) for file in args.out.iterdir() for line in file.read_text().splitlines()]
print(f"{len(answers)} rows, {sum(not answer['error'] for answer in answers)} answered")
