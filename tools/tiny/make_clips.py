"""Write a fixed set of questions about short clips: OUT/rows.jsonl and OUT/clips/<dataset>/<clip>/<frame>.png, eight frames at two a second.

Three types of question (`dataset`), four to a clip at most; the first two are about two thirds of the clips:
  read   What letter is on the red circle?   The objects come and go; each is there for a second of the four.
  last   Which number appears last?          The same clips: the numbers in turn.
  stop   Where does the red circle stop?     Objects on their way from one side of the picture to another: left, right, top or bottom.
Boxes have the times that they are for ([x1, y1, x2, y2, from, to] in pixels and seconds). A third of the rows ask for the short form.
OUT/whole.jsonl has the rows in another order, three in ten of those that read, with boxes around whole frames: `glimpse tune` prunes nothing then.

usage: python make_clips.py OUT [--clips 60] [--seed S] [--split train|test]
"""
from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import synth

SIDE = 224
FRAMES, FPS = 8, 2  # two frames make a slice of the encoder
SLICES = FRAMES // 2
SIDES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}

Frame = list[synth.Obj]


def timed(box: list[int], first: int, last: int) -> list[float]:
    """The box, for the slices from `first` to `last`."""
    return [*box, first * 2 / FPS, (last + 1) * 2 / FPS]


def things(rng: random.Random, count: int) -> Frame:
    """Objects that differ in colour and shape together and in their texts."""
    pairs = rng.sample([(c, s) for c in synth.COLOURS for s in synth.SHAPES], count)
    texts = rng.sample(synth.DIGITS + synth.LETTERS, count)
    return [synth.Obj(c, s, t, 0, 0, 3 * synth.CELL - 4) for (c, s), t in zip(pairs, texts)]


def anywhere(rng: random.Random, obj: synth.Obj) -> synth.Obj:
    def at() -> int:
        return rng.randint(0, SIDE // synth.CELL - 3) * synth.CELL + 2

    return replace(obj, x=at(), y=at())


def passing(rng: random.Random) -> tuple[list[Frame], list[synth.Question]]:
    """One object a slice, most of them with numbers."""
    shown = [anywhere(rng, o) for o in things(rng, SLICES)]
    asked = []
    for i, o in enumerate(shown):
        thing = f"{o.colour} {o.shape}"
        asked.append(synth.Question("read", f"What {o.kind} is on the {thing}?", f"The {o.kind} on the {thing} is {o.text}.", o.text, [timed(o.box, i, i)]))
    for kind in ("number", "letter"):
        of_kind = [i for i, o in enumerate(shown) if o.kind == kind]
        if len(of_kind) > 1:
            i = of_kind[-1]
            asked.append(synth.Question("last", f"Which {kind} appears last?", f"The {kind} that appears last is {shown[i].text}.", shown[i].text,
                                        [timed(shown[i].box, i, i)]))
    return [[shown[f // 2]] for f in range(FRAMES)], asked


def moving(rng: random.Random) -> tuple[list[Frame], list[synth.Question]]:
    """Two objects, each from one side to another one; they may cover each other on the way, never where they stop."""
    far = SIDE - 3 * synth.CELL + 2
    places = {"left": (2, far // 2), "right": (far, far // 2), "top": (far // 2, 2), "bottom": (far // 2, far)}
    ends = rng.sample(list(places), 2)
    frames: list[Frame] = [[] for _ in range(FRAMES)]
    asked = []
    for o, end in zip(things(rng, 2), ends):
        start = rng.choice([side for side in places if side != end])
        (x0, y0), (x1, y1) = places[start], places[end]
        for f in range(FRAMES):
            way = min(1.0, f / (FRAMES - 3))  # still in the last slice
            frames[f].append(replace(o, x=round(x0 + way * (x1 - x0)), y=round(y0 + way * (y1 - y0))))
        thing = f"{o.colour} {o.shape}"
        asked.append(synth.Question("stop", f"Where does the {thing} stop?", f"The {thing} stops {SIDES[end]}.", end,
                                    [timed(frames[-1][-1].box, SLICES - 1, SLICES - 1)]))
    return frames, asked


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=Path)
    ap.add_argument("--clips", type=int, default=60)
    ap.add_argument("--seed", type=int, default=20261128)
    ap.add_argument("--split", choices=["train", "test"], default="test", help="which photo backgrounds")
    args = ap.parse_args()
    rng = random.Random(args.seed)
    rows: list[dict] = []
    for number in range(args.clips):
        frames, asked = (moving if number % 3 == 2 else passing)(rng)
        name = f"clips/{'stop' if number % 3 == 2 else 'read'}/{number:04d}"
        (args.out / name).mkdir(parents=True, exist_ok=True)
        look = rng.getrandbits(32)  # background, tints and fonts: the same in every frame
        for f, objs in enumerate(frames):
            image, _ = synth.render(random.Random(look), objs, SIDE, SIDE, args.split)
            image.save(args.out / name / f"{f}.png")
        for q in rng.sample(asked, min(4, len(asked))):
            question, answer = q.form(short := len(rows) % 3 == 2)
            rows.append({"id": len(rows), "question": question, "answer": answer, "dataset": q.kind, "video": name, "bboxs": q.boxes,
                         "width": SIDE, "height": SIDE, "short": short})
    pick = random.Random(1)
    whole = [{**r, "bboxs": [[0, 0, SIDE, SIDE]]} for r in rows if r["dataset"] != "read" or pick.random() < .3]
    pick.shuffle(whole)
    for name, written in (("rows", rows), ("whole", whole)):
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in written))
    print(len(rows), "rows")


if __name__ == "__main__":
    main()
