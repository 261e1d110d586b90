"""Commands of the program as functions: the same settings, files and results."""
import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import _engine


def _flags(settings: dict[str, Any]) -> list[str]:
    """As the program spells them: keep_going=True is --keep-going, budgets=[0.1, 0.2] is --budgets 0.1,0.2."""
    out = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            out += [flag] if value else []
        elif isinstance(value, (list, tuple)):
            out += [flag, ",".join(map(str, value))]
        elif value is not None:
            out += [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return out


def _run(command: str, arguments: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # what it would print is returned
        status = _engine.run([command, *arguments])
    if status:
        raise _engine.Error(f"{command} ended with status {status}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Table(list[dict[str, Any]]):
    """Rows as dicts, what pandas.DataFrame takes. In a notebook it shows as a table."""

    def __init__(self, rows: Sequence[dict[str, Any]], folder: Path):
        super().__init__(rows)
        self.folder = folder  #: with results.json, table.csv and report.html

    def __str__(self) -> str:
        names = list(self[0]) if self else []
        cells = [names, *([_cell(value) for value in row.values()] for row in self)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)

    def _repr_html_(self) -> str:
        from html import escape
        head = "".join(f"<th>{escape(name)}</th>" for name in (self[0] if self else ()))
        body = "".join("<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values())
                       + "</tr>" for row in self)
        return f"<table><tr>{head}</tr>{body}</table>"


def evaluate(out: str | os.PathLike, *, task: str | Sequence[str] = "tiny", methods: str | Sequence[str] = ("none", "glimpse"),
             budgets: Sequence[Any] = ("own",), **settings: Any) -> Table:
    """Compares pruning methods, registered ones of one's own among them, on tasks: what `glimpse eval` does.

    out: folder of answers and results; an existing one is continued. settings: the command's flags with underscores, such as model,
    new_modules, limit, data_root, keep_going=True. Gives a row per task, set and method with its scores, kept share and times. Ctrl-C stops;
    the same call goes on from there. Raises Error.
    """
    listed = [each if isinstance(each, str) else ",".join(map(str, each)) for each in (task, methods)]
    _run("eval", _flags({"out": out, "task": listed[0], "methods": listed[1], "budgets": list(budgets), **settings}))
    return Table(_rows(Path(out)), Path(out))


def _rows(folder: Path) -> list[dict[str, Any]]:
    import csv
    with open(folder / "table.csv", encoding="utf-8", newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def _training(command: str, out: str | os.PathLike | None, data: str | os.PathLike | Sequence[Any], resume: str | os.PathLike | None,
              settings: dict[str, Any]) -> Path:
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    arguments = _flags({"out": out, "resume": resume, **settings})
    for file in files:
        arguments += ["--data", os.fspath(file)]
    _run(command, arguments)
    return Path(out if resume is None else resume) / "final"  # type: ignore[arg-type]


def train(out: str | os.PathLike | None = None, *, config: str | os.PathLike | None = None, data: str | os.PathLike | Sequence[Any] = (),
          resume: str | os.PathLike | None = None, overwrite: bool = False, **settings: Any) -> Path:
    """Trains glimpse token and predictor on a frozen model: what `glimpse train` does. Gives the folder of the new modules.

    out: the run's folder; or resume: one to go on with. config: YAML of settings; settings win over it: model, image_root, epochs, lr and so
    on, the command's flags with underscores. data: JSONL files of rows. Ctrl-C stops after a checkpoint. Raises Error.
    """
    return _training("train", out, data, resume, {"config": config, "overwrite": overwrite, **settings})


def tune(out: str | os.PathLike | None = None, *, config: str | os.PathLike | None = None, data: str | os.PathLike | Sequence[Any] = (),
         resume: str | os.PathLike | None = None, overwrite: bool = False, **settings: Any) -> Path:
    """Fine-tunes the language model on pruned prompts: what `glimpse tune` does. Gives the folder of the adapter. Arguments as those of train()."""
    return _training("tune", out, data, resume, {"config": config, "overwrite": overwrite, **settings})
