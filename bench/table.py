"""Prints build/bench.json as the Markdown table of docs/results.md, or with --goals only what was wanted and reached.

Usage: table.py [--goals] [BENCH.json]
"""
import json
import sys


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def of_share(row):
    return row["goal"]["of"] == "share_of_limit"


def goal(row):
    kind = "at_most" if "at_most" in row["goal"] else "at_least"
    bound = row["goal"][kind]
    return f"{kind.replace('_', ' ')} {f'{100 * bound:g} % of limit' if of_share(row) else f'{bound:g} ' + row['unit']}"


def verdict(row):
    return {True: "ok", False: "MISSED", None: "?"}[row["goal"].get("met")]


def share(row):
    return f"{100 * row['share_of_limit']:.0f} %" if row["share_of_limit"] else ""


def print_all(rows):
    print("| row | best | median | unit | share of limit | goal | peer | ratio | note |\n|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        more = row["unit"].endswith("/s") or row["unit"] == "x"
        peers = "; ".join(f"{name} {number(value)}" for name, value in row["peers"].items())
        ratios = "; ".join(f"{row['value'] / v if more else v / row['value']:.2f}x" for v in row["peers"].values())
        median = number(row["median"]) if "median" in row else ""
        wanted = f"{goal(row)}: {verdict(row)}" if "goal" in row else ""
        print(f"| {row['name']} | {number(row['value'])} | {median} | {row['unit']} | {share(row)} | {wanted} | {peers} | {ratios} | "
              f"{row.get('note', '')} |")


def print_goals(rows):
    print("| row | wanted | reached | |\n|---|---|---|---|")
    for row in rows:
        if "goal" in row:
            reached = share(row) if of_share(row) else number(row["value"])
            print(f"| {row['name']} | {goal(row)} | {reached} | {verdict(row)} |")


def main():
    files = [argument for argument in sys.argv[1:] if argument != "--goals"]
    with open(files[0] if files else "build/bench.json") as file:
        rows = json.load(file)
    (print_goals if "--goals" in sys.argv else print_all)(rows)


main()
