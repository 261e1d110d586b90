"""The parts of tools/train_tiny_plus that read rows.

usage: python score_plus.py whole ROWS.jsonl > WHOLE.jsonl    the same rows, with the whole picture as their box
       python score_plus.py means OUT >> MEANS.jsonl          of each way, pruning and seed in OUT/scores the means over the test sets
       python score_plus.py table OUT|MEANS.jsonl...          Markdown table of all these, means over the seeds
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


def means(out: Path) -> list[dict]:
    """Of what was scored on all test sets."""
    rows = {test: lines(out / f"test-{test}/rows.jsonl") for test in "123"}
    per_test = defaultdict(list)
    for file in sorted((out / "scores").glob("*.jsonl")):
        name, method, test = file.stem.rsplit("-", 2)
        seed = re.search(r"-(\d+)(?=-stage-1$|$)", name)
        way = name.replace(seed[0], "", 1) if seed else name
        per_test[way, method, seed[1] if seed else ""].append(scores(rows[test], lines(file)))
    return [{"way": way, "pruning": method, "seed": seed} | {key: round(fmean(each[key] for each in of_tests), 5) for key in of_tests[0]}
            for (way, method, seed), of_tests in per_test.items() if len(of_tests) == len(rows)]


def table(all_means: list[dict]) -> None:
    found = defaultdict(dict)  # way and pruning -> seed -> means
    for one in all_means:
        found[one["way"], one["pruning"]][one["seed"]] = one
    order = ["base", *(way + stage for way in ("rl", "sft", "no-kd", "unpruned", "every-layer") for stage in ("-stage-1", ""))]
    print("| way | pruning | seeds | count | all | read, sentences | other kinds | gone | IoU |\n|---|---|---|---|---|---|---|---|---|")
    for way, method in sorted(found, key=lambda each: (order.index(each[0]), each[1] != "none")):
        seeds = list(found[way, method].values())

        def cell(*keys):
            each = [fmean(one[key] for key in keys) for one in seeds if all(key in one for key in keys)]
            return (f"{fmean(each):.3f}" + (f" ± {stdev(each):.3f}" if len(each) > 1 else "")) if each else ""

        others = [kind for kind in KINDS if kind not in ("count", "read")]
        print("|", " | ".join([way, method, str(len(seeds)), cell("count"), cell("all"), cell("sentence"), cell(*others), cell("gone"), cell("iou")]), "|")


def main() -> None:
    command, *places = sys.argv[1:]
    if command == "table":
        table([one for place in map(Path, places) for one in (means(place) if place.is_dir() else lines(place))])
    elif command == "means":
        for one in means(Path(places[0])):
            print(json.dumps(one))
    else:
        for row in lines(Path(places[0])):
            print(json.dumps({**row, "bboxs": [[0, 0, row["width"], row["height"]]]}))


if __name__ == "__main__":
    main()
