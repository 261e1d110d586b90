"""Tables of tools/benchmark_sets: benchmark_sets.py DIR [FILE.md]; DIR has a folder of an evaluation for each set."""
import json
import sys
from pathlib import Path

SETS = {"tiny": "The test set", "withheld": "Questions with the nine words", "large": "Larger pictures (576 to 1,024 visual tokens)",
        "pairs": "Two pictures, of which one has the answer"}


def table(results: dict) -> str:
    cells = results["cells"]
    base = next(cell["all"] for cell in cells if cell["method"] == "none")
    lines = ["| | kept | exact | `read` | F1 with the boxes | encoder GFLOP | prefill GFLOP |", "|---|---|---|---|---|---|---|"]
    for cell in cells:
        sums = cell["all"]
        read = cell["sets"].get("read", sums)
        work = sums["gflop"]
        lines.append(f"| `{cell['method']}`{'' if cell['budget'] == 'own' else ' at ' + cell['budget']} | {100 * sums['kept']:.1f} % | {sums['score']:.3f} | {read['score']:.3f} | "
                     f"{(sums['mask'] or {}).get('f1') or 0:.2f} | "
                     f"{work['vision'] / base['gflop']['vision']:.2f}x | {(work['prefill'] + work['prune']) / base['gflop']['prefill']:.2f}x |")
    rows = results["tasks"][0]["rows"]
    lines += ["", f"{rows} rows, standard error {base['score_error']:.3f} without pruning; GFLOP beside no pruning, choosing included in the prefill's."]
    return "\n".join(lines) + "\n"


def main() -> None:
    folder, *out = map(Path, sys.argv[1:])
    text = "# Early cuts on other questions\n\nMade by `tools/benchmark_sets`; [early_cut.md](../early_cut.md) says what the methods are.\n"
    for name, title in SETS.items():
        text += f"\n## {title}\n\n" + table(json.loads((folder / f"answers-{name}" / "results.json").read_text()))
    print(text)
    for file in out:
        file.write_text(text)


if __name__ == "__main__":
    main()
