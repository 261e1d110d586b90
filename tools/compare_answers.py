"""Compares the output of `glimpse infer` with recorded answers: compare_answers.py OUT.jsonl ANSWERS.jsonl [--pruned]"""
import json
import sys


def rows(path: str) -> dict:
    return {row["id"]: row for row in map(json.loads, open(path))}


def main() -> None:
    ours, recorded, pruned = rows(sys.argv[1]), rows(sys.argv[2]), "--pruned" in sys.argv[3:]
    missing = set(recorded) - set(ours)
    answer = "answer_pruned" if pruned else "answer_full"
    same = sum(ours[i]["answer"] == row[answer] for i, row in recorded.items() if i in ours)
    exact = sum(ours[i]["answer"] == row["expected"] for i, row in recorded.items() if i in ours)
    print(f"{len(ours)} rows, {len(missing)} missing; equal to the recorded answers: {same}; exact answers: {exact}"
          f" ({100 * exact / len(recorded):.2f} %)")
    if pruned:
        kept = sum(ours[i]["keep"] == [row["keep"]] for i, row in recorded.items() if i in ours)
        share = sum(1 - row["kept_tokens"] / row["visual_tokens"] for row in ours.values()) / len(ours)
        print(f"equal kept tokens: {kept}; pruned {100 * share:.1f} % (mean per row)")


main()
