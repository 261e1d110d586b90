"""A line of the table of tools/train_tiny_video: exact answers per type of question, and the share of the visual tokens that was kept.

usage: python score_clips.py ROWS.jsonl ANSWERS.jsonl MODEL METHOD
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

KINDS = ("read", "last", "stop")


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def main() -> None:
    rows, answers, model, method = sys.argv[1:]
    answered = {str(each["id"]): each for each in read(answers)}
    right = {kind: [] for kind in KINDS}
    for row in read(rows):
        right[row["dataset"]].append(answered[str(row["id"])]["answer"].strip() == row["answer"])
    kept = sum(each["kept_tokens"] for each in answered.values()) / sum(each["visual_tokens"] for each in answered.values())
    cells = [f"{sum(hits)} of {len(hits)}" for hits in right.values()]
    print("|", " | ".join([model, method, *cells, f"{100 * kept:.1f} %"]), "|")


if __name__ == "__main__":
    main()
