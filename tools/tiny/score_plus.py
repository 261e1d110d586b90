"""The parts of tools/train_tiny_plus that read rows.

usage: python score_plus.py whole ROWS.jsonl > WHOLE.jsonl    the same rows, with the whole picture as their box
       python score_plus.py table OUT                         Markdown table of OUT/scores, means over test sets and seeds
"""
from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from claim_table import reference  # noqa: E402

KINDS = ("count", "read", "colour", "shape", "exist")


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def scores(rows: list[dict], answers: list[dict]) -> dict[str, float]:
    """Shares of exact answers, the share of visual tokens that are gone, and the IoU of those that are kept with the boxes."""
    answered = {answer["id"]: answer for answer in answers}
    right, both, either = defaultdict(list), 0, 0
    for row in rows:
        answer = answered[row["id"]]
        hit = answer["answer"].strip() == row["answer"]
        for kind in ["all", row["dataset"]] + (["sentence"] if row["dataset"] == "read" and not row["short"] else []):
            right[kind].append(hit)
        keep, mask = set(answer["keep"][0]), reference(row)
        both, either = both + len(keep & mask), either + len(keep | mask)
    gone = 1 - sum(answer["kept_tokens"] for answer in answers) / sum(answer["visual_tokens"] for answer in answers)
    return {**{kind: fmean(hits) for kind, hits in right.items()}, "gone": gone, "iou": both / either}


def table(out: Path) -> None:
    rows = {test: lines(out / f"test-{test}/rows.jsonl") for test in "123"}
    found = defaultdict(dict)  # way and method -> seed -> mean over the test sets
    per_test = defaultdict(list)
    for file in (out / "scores").glob("*.jsonl"):
        name, method, test = file.stem.rsplit("-", 2)
        seed = re.search(r"-(\d+)(?=-stage-1$|$)", name)
        way = name.replace(seed[0], "", 1) if seed else name
        per_test[way, method, seed[1] if seed else ""].append(scores(rows[test], lines(file)))
    for (way, method, seed), of_tests in per_test.items():
        if len(of_tests) == len(rows):
            found[way, method][seed] = {key: fmean(each[key] for each in of_tests) for key in of_tests[0]}
    order = ["base", *(way + stage for way in ("rl", "sft", "no-kd", "unpruned", "every-layer") for stage in ("-stage-1", ""))]
    print("| way | pruning | seeds | count | all | read, sentences | other kinds | gone | IoU |\n|---|---|---|---|---|---|---|---|---|")
    for way, method in sorted(found, key=lambda each: (order.index(each[0]), each[1] != "none")):
        seeds = list(found[way, method].values())

        def cell(value, form="{:.3f}"):
            each = [value(one) for one in seeds]
            return form.format(fmean(each)) + (f" ± {form.format(stdev(each))}" if len(each) > 1 else "")

        others = [kind for kind in KINDS if kind not in ("count", "read")]
        print("|", " | ".join([way, method, str(len(seeds)), cell(lambda one: one["count"]), cell(lambda one: one["all"]), cell(lambda one: one["sentence"]),
                               cell(lambda one: fmean(one[kind] for kind in others)), cell(lambda one: one["gone"]),
                               cell(lambda one: one["iou"])]), "|")


def main() -> None:
    command, place = sys.argv[1:]
    if command == "table":
        table(Path(place))
    else:
        for row in lines(Path(place)):
            print(json.dumps({**row, "bboxs": [[0, 0, row["width"], row["height"]]]}))


if __name__ == "__main__":
    main()
