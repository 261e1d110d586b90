"""Writes the numbers of a comparison of methods between the marks of documents: benchmark_tables.py [RESULTS.json FILE ...]
(docs/benchmark/results.json, docs/benchmark/README.md and docs/results.md)."""
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- made by tools/benchmark: begin -->\n", "<!-- made by tools/benchmark: end -->\n"
COST = "0.111"  # the budget at which costs are told


def percent(budget: str) -> str:
    return f"{100 * float(budget):.3g} %" if float(budget) <= 1 else f"{budget} tokens"


def tables(results: dict) -> str:
    cells = {(cell["method"], cell["budget"]): cell for cell in results["cells"]}
    budgets = list(dict.fromkeys(budget for _, budget in cells if budget not in ("own", "1")))
    methods = list(dict.fromkeys(method for method, budget in cells if budget != "own"))
    cost = COST if COST in budgets else budgets[0]
    score = lambda cell: f"{cell['all']['score']:.3f}"
    price = lambda cell: (f"{cell['all']['times_ms']['total']:.0f}", f"{cell['all']['gflop']['total']:.2f}")
    lines = ["| method | " + " | ".join(map(percent, budgets)) + f" | ms at {percent(cost)} | GFLOP at {percent(cost)} |",
             "|---|" + "---|" * (len(budgets) + 2)]
    for method in methods:
        found = [cells[method, budget] for budget in budgets]
        lines.append(f"| `{method}` | " + " | ".join([*map(score, found), *price(cells[method, cost])]) + " |")
    lines.append("")
    base = cells["none", "own"]
    lines.append("- Without pruning: {}, {} ms, {} GFLOP.".format(score(base), *price(base)))
    kept = lambda cell: f"{100 * cell['all']['kept']:.1f} % kept"
    own = cells.get(("glimpse", "own"))
    for (method, budget), cell in cells.items():
        if budget == "own" and method not in ("none", "reference"):
            lines.append("- `{}` by its own thresholds: {} with {}, {} ms, {} GFLOP.".format(method, score(cell), kept(cell), *price(cell)))
    if inside := cells.get(("reference", "own")):
        lines.append(f"- The tokens inside the true boxes: {score(inside)} with {kept(inside)}.")
    f1 = lambda cell: (cell["all"]["mask"] or {}).get("f1") or 0
    best = max((cell for key, cell in cells.items() if key[0] in methods and "glimpse" != key[0] and key[1] != "own"),
               key=f1)
    if own and f1(own):
        lines.append(f"- Kept tokens against the boxes, F1: `glimpse` by its own threshold {f1(own):.2f}, the best of the others "
                     f"{f1(best):.2f} (`{best['method']}`, {percent(best['budget'])}).")
    about, task = results["about"], results["tasks"][0]
    machine = about["machine"]
    error = base["all"]["score_error"]
    lines.append(f"- {task['rows']} rows, score {task['score']} (standard error {error:.3f} without pruning); a question's mean "
                 f"time, {machine['threads']} thread{'s' * (machine['threads'] > 1)} on {machine['processor']}; "
                 f"{about['dtype']}, commit {about['commit']}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    results, *files = sys.argv[1:] or ["docs/benchmark/results.json", "docs/benchmark/README.md", "docs/results.md"]
    text = tables(json.loads(Path(results).read_text()))
    for file in map(Path, files):
        old = file.read_text()
        before, begin, rest = old.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            sys.exit(f"benchmark_tables: {file}: no lines {BEGIN!r} and {END!r}")
        file.write_text(before + BEGIN + text + END + after)


main()
