"""Prints build/bench.json as the Markdown table of docs/results.md: table.py [BENCH.json]"""
import json
import sys


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def main() -> None:
    rows = json.load(open(sys.argv[1] if len(sys.argv) > 1 else "build/bench.json"))
    print("| row | best | median | unit | share of limit | peer | ratio | note |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        more = row["unit"].endswith("/s") or row["unit"] == "x"
        peers = "; ".join(f"{name} {number(value)}" for name, value in row["peers"].items())
        ratios = "; ".join(f"{row['value'] / v if more else v / row['value']:.2f}x" for v in row["peers"].values())
        share = f"{100 * row['share_of_limit']:.0f} %" if row["share_of_limit"] else ""
        median = number(row["median"]) if "median" in row else ""
        print(f"| {row['name']} | {number(row['value'])} | {median} | {row['unit']} | {share} | {peers} | {ratios} | "
              f"{row.get('note', '')} |")


main()
