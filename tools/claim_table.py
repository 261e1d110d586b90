"""Markdown table of answers and kept tokens: claim_table.py ROWS.jsonl ANSWERS.jsonl ... (outputs of glimpse infer)"""
import json
import sys
from pathlib import Path

CELL = 28  # pixels of a visual token


def reference(row: dict) -> set:
    """The tokens that the row's boxes touch; test images are multiples of CELL."""
    columns = row["width"] // CELL
    return {y * columns + x for x1, y1, x2, y2 in row["bboxs"]
            for y in range(int(y1 // CELL), min(row["height"], int(-(-y2 // 1)) + CELL - 1) // CELL)
            for x in range(int(x1 // CELL), min(row["width"], int(-(-x2 // 1)) + CELL - 1) // CELL)}


def main() -> None:
    rows = {row["id"]: row for row in map(json.loads, open(sys.argv[1]))}
    print("| pruning | exact | `read`, sentence form | pruned | precision | recall | F1 | IoU |\n|---|---|---|---|---|---|---|---|")
    for file in map(Path, sys.argv[2:]):
        answers = {answer["id"]: answer for answer in map(json.loads, open(file))}
        assert answers.keys() == rows.keys(), f"{file}: {len(answers)} of {len(rows)} rows"
        right = {i for i, row in rows.items() if answers[i]["answer"].strip() == row["answer"]}
        sentences = [i for i, row in rows.items() if row["dataset"] == "read" and not row["short"]]
        both = kept = boxed = 0
        for i, row in rows.items():
            keep, mask = set(answers[i]["keep"][0]), reference(row)
            both, kept, boxed = both + len(keep & mask), kept + len(keep), boxed + len(mask)
        pruned = sum(1 - a["kept_tokens"] / a["visual_tokens"] for a in answers.values()) / len(answers)
        read = sum(i in right for i in sentences)
        scores = [both / kept, both / boxed, 2 * both / (kept + boxed), both / (kept + boxed - both)]
        print(f"| {file.stem} | {len(right)}/{len(rows)} = {100 * len(right) / len(rows):.2f} % | {read}/{len(sentences)} | "
              f"{100 * pruned:.1f} % | " + " | ".join(f"{s:.3f}" for s in scores) + " |")


if __name__ == "__main__":
    main()
