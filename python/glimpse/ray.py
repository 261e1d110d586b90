"""Many machines, by Ray: the rows of files answered by many engines (Ray Data), and many replicas of `glimpse serve` (Ray Serve).

    glimpse.ray.ask_many("rows.jsonl", "answers", actors=8, num_cpus=16, engine={"model": "DIR", "weights": "int8"}, id="id")
    ray.serve.run(glimpse.ray.deployment("--model", "DIR", num_replicas=8, ray_actor_options={"num_cpus": 16}))

docs/scale.md says how such runs are laid out.
"""
import asyncio
import collections
import hashlib
import http.client
import io
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import glimpse
try:
    import pyarrow as pa
    import ray
    import ray.data.checkpoint
    from ray.data.datasource import BlockBasedFileDatasink, FileBasedDatasource
except ImportError as error:
    raise ImportError(f"glimpse.ray needs Ray ({error}): pip install 'glimpse[ray]'") from error

if TYPE_CHECKING:  # what serves is imported where it is used: actors that answer rows start faster without it
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["ADDED", "AskMany", "ask_many", "deployment"]

#: Columns that AskMany adds to the rows, and their types. `error` is empty, or says why there is no answer.
ADDED = {"text": pa.string(), "finish_reason": pa.string(), "prompt_tokens": pa.int64(), "visual_tokens": pa.int64(),
         "kept_tokens": pa.int64(), "error": pa.string()}


class AskMany:
    """Answers batches of rows with an engine of its own. For Ray Data's map_batches, which makes one in each actor:

        rows.map_batches(glimpse.ray.AskMany, fn_constructor_kwargs={"engine": {"model": "DIR"}}, batch_size=256,
                         batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=8), num_cpus=16)

    Ray's default format of batches, arrays of numpy, will do too, but may change the types of other columns. A row that cannot be answered
    gets the reason in `error`, and the others go on.

    engine: keyword arguments of Engine. request: keyword arguments of every Engine.ask, such as prune, keep and max_new_tokens. question,
    image, video: names of columns; an image is a path, the bytes of a file, {"bytes", "path"} as in Hugging Face's data sets, a list of these, or
    null for none, and so is a video, shown behind the images. image_root: the folder of relative paths. columns: those to pass on beside ADDED's; None: all. Raises Error if the
    engine cannot be made.
    """

    def __init__(self, engine: Mapping[str, Any] | None = None, request: Mapping[str, Any] | None = None, *, question: str = "question",
                 image: str = "image", video: str = "video", image_root: str | os.PathLike = "", columns: Sequence[str] | None = None):
        self._request, self._question, self._image, self._video = dict(request or {}), question, image, video
        self._root, self._columns = os.fspath(image_root), columns
        self._engine = glimpse.Engine(**(engine or {}))

    def __call__(self, batch: Any) -> Any:
        """The batch, a pyarrow.Table or a dict of arrays, with ADDED's columns. Raises ValueError if a column is not there, or would be there
        twice."""
        table = isinstance(batch, pa.Table)
        names = batch.column_names if table else list(batch)
        for name in (self._question, *(self._columns or ())):
            if name not in names:
                raise ValueError(f"the rows have no column {name!r}; they have {', '.join(map(repr, names))}")
        kept = self._passed_on(names)
        values = {name: batch[name].to_pylist() if table else batch[name] for name in (self._question, self._image, self._video) if name in names}
        questions = values[self._question]
        none = [None] * len(questions)
        answers = self._answers(zip(questions, values.get(self._image, none), values.get(self._video, none)))
        added = {name: [answer[name] for answer in answers] for name in ADDED}
        if not table:
            return {name: batch[name] for name in kept} | added
        batch = batch.select(kept)
        for name, kind in ADDED.items():
            batch = batch.append_column(name, pa.array(added[name], kind))
        return batch

    def _passed_on(self, names: Iterable[str]) -> list[str]:
        names = [name for name in names if self._columns is None or name in self._columns]
        if taken := [name for name in names if name in ADDED]:
            raise ValueError(f"the rows have a column {taken[0]!r} already, where answers would go: rename it, or leave it out by columns=")
        return names

    def _answers(self, asked: Iterable[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
        """What ADDED names, for questions, their images and videos. In place of a question, an exception says why there is none."""
        out: list[dict[str, Any] | None] = []
        requests = []
        for question, image, video in asked:
            try:
                if isinstance(question, Exception):
                    raise question
                if not isinstance(question, str):
                    raise ValueError(f"{self._question!r} must be a text, not {question!r}")
                files, clips = self._files(image, self._image), self._files(video, self._video)
                requests.append({**self._request, "images": files, **({"video": clips} if clips else {}), "question": question})
                out.append(None)
            except ValueError as error:
                out.append(_answered(error))
        came = iter(self._engine.ask_many(requests, errors="return", progress=False))
        return [each or _answered(next(came)) for each in out]

    def _files(self, of: Any, column: str) -> list[str | bytes]:
        if isinstance(of, Mapping):
            of = of.get("bytes") or of.get("path")
        if of is None or (isinstance(of, float) and of != of):  # NaN: a null that went through numpy
            return []
        if isinstance(of, bytes):
            return [of]
        if isinstance(of, str):
            return [of if of.startswith("data:") else os.path.join(self._root, of)]
        if isinstance(of, Iterable):
            return [file for each in of for file in self._files(each, column)]
        raise ValueError(f"{column!r} must be the path or the bytes of a file, or a list of them, not a {type(of).__name__}")


def _answered(of: glimpse.Answer | Exception) -> dict[str, Any]:
    if isinstance(of, Exception):
        return {"text": "", "finish_reason": "error", "prompt_tokens": 0, "visual_tokens": 0, "kept_tokens": 0,
                "error": str(of) or type(of).__name__}
    return {name: getattr(of, name, "") for name in ADDED}


# JSONL goes through Ray as lines: what Ray reads itself gets one type per column, so that "007" becomes 7 and a broken line ends the run.

class _Lines(FileBasedDatasource):
    """The lines of files, each with the JSON of its field `id`, or with its place if it has none."""

    def __init__(self, files: list[str], id: str | None):
        super().__init__(files)
        self._id = id

    def _read_stream(self, f: pa.NativeFile, path: str) -> Iterator[pa.Table]:
        lines = ((number, line) for number, line in enumerate(io.BufferedReader(f), 1) if line.strip())
        while some := list(itertools.islice(lines, 10000)):
            yield pa.table({"id": pa.array([self._name(line, f"{path}:{number}") for number, line in some], pa.string()),
                            "line": pa.array([line for _, line in some], pa.binary())})

    def _name(self, line: bytes, place: str) -> str:
        row = _row(line) if self._id is not None else None
        return json.dumps(row[self._id]) if isinstance(row, dict) and self._id in row else place


class _AskManyLines(AskMany):
    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [_row(line) for line in batch["line"].to_pylist()]
        answers = self._answers((row, None, None) if isinstance(row, Exception) else (row.get(self._question), row.get(self._image), row.get(self._video))
                                for row in rows)
        out = []
        for line, row, answer in zip(batch["line"].to_pylist(), rows, answers):
            kept = {"line": line.decode(errors="replace").strip()} if isinstance(row, Exception) else {n: row[n] for n in self._passed_on(row)}
            out.append((json.dumps(kept | answer, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))  # lone surrogates stay escapes
        return pa.table({"id": batch["id"], "line": pa.array(out, pa.binary())})


def _row(line: bytes) -> dict[str, Any] | ValueError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"the line is not JSON: {error}")
    return row if isinstance(row, dict) else ValueError("the line is not a JSON object")


class _LinesOut(BlockBasedFileDatasink):
    def __init__(self, folder: str):
        super().__init__(folder, file_format="jsonl")

    def write_block_to_file(self, block: Any, file: pa.NativeFile) -> None:
        file.write(b"".join(block.to_arrow()["line"].to_pylist()))


def ask_many(rows: str | os.PathLike | Sequence[str | os.PathLike], out: str | os.PathLike, *, actors: int | tuple[int, int],
             engine: Mapping[str, Any] | None = None, request: Mapping[str, Any] | None = None, batch_size: int = 64, num_cpus: float = 1,
             num_gpus: float = 0, question: str = "question", image: str = "image", video: str = "video", image_root: str | os.PathLike = "",
             columns: Sequence[str] | None = None, id: str | None = None, overwrite: bool = False) -> None:
    """Answers the rows of .jsonl or .parquet files with many engines. `out` becomes a folder of files of the same kind: the rows with
    ADDED's columns, each once, in no particular order. Every machine of the cluster must see rows, pictures and out at the same paths.

    actors: engines; (least, most) lets Ray choose. One that is lost is started again, elsewhere if its machine is gone, and answers again
    what it had not handed over. num_cpus, num_gpus: of an actor; the cluster needs one CPU more, to read and write. batch_size: rows that
    an engine is given at once, and of a file in out. id: a column whose values are all different; with it the same call goes on where an
    earlier one ended, however that ended; without, it begins again. overwrite: replaces what is at out. The rest: as for AskMany.

    Until every row is answered, answers are in OUT.part. Raises ValueError, FileExistsError and what Ray raises.
    """
    files = [os.path.abspath(each) for each in ([rows] if isinstance(rows, (str, os.PathLike)) else rows)]
    kinds = {Path(file).suffix for file in files}
    if kinds not in ({".jsonl"}, {".parquet"}):
        raise ValueError(f"rows: expected .jsonl or .parquet files, not {', '.join(files) or 'none'}")
    lines = kinds == {".jsonl"}
    out = Path(out).absolute()
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already; overwrite=True replaces it")
    if not ray.is_initialized():
        ray.init()
    least, most = (actors, actors) if isinstance(actors, int) else actors
    cpus = ray.cluster_resources().get("CPU", 0)
    if least * num_cpus + 1 > cpus:
        raise ValueError(f"the cluster has {cpus:g} CPUs; {least} actors of {num_cpus:g}, and one to read and write, need {least * num_cpus + 1:g}")

    settings = {"engine": {"threads": max(1, int(num_cpus)), **(engine or {})}, "request": dict(request or {}), "question": question,
                "image": image, "video": video, "image_root": os.path.abspath(image_root) if image_root else "", "columns": columns and list(columns)}
    part = out.with_name(out.name + ".part")
    _begin(part, {"rows": files, "id": id, **settings}, go_on=id is not None)
    context = ray.data.DataContext.get_current().copy()
    if id is not None:
        context.checkpoint_config = ray.data.checkpoint.CheckpointConfig("id" if lines else id, str(part / "done"),
                                                                         delete_checkpoint_on_success=False)
    with ray.data.DataContext.current(context):
        data = ray.data.read_datasource(_Lines(files, id)) if lines else ray.data.read_parquet(files, partitioning=None)
        # A block for every batch: one file keeps all actors busy, and with an actor few rows are lost.
        data = data.repartition(target_num_rows_per_block=batch_size, strict=True).map_batches(
            _AskManyLines if lines else AskMany, fn_constructor_kwargs=settings, batch_size=batch_size, batch_format="pyarrow",
            num_cpus=num_cpus, num_gpus=num_gpus or None, compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most))
        if lines:
            data.write_datasink(_LinesOut(str(part / "rows")))
        else:
            data.write_parquet(str(part / "rows"))
    (part / "rows").mkdir(exist_ok=True)  # Ray makes none where there are no rows
    if out.exists():
        shutil.rmtree(out)
    (part / "rows").rename(out)
    shutil.rmtree(part)


def _begin(part: Path, settings: dict[str, Any], go_on: bool) -> None:
    """Makes the folder of a run, or takes that of an earlier call with the same settings. Raises ValueError if they differ."""
    note, said = part / "settings.json", json.dumps(settings, default=str, indent=1)
    if go_on and note.exists():
        if note.read_text() != said:
            raise ValueError(f"{part} is of a run with other settings ({note.name} there): repeat them, or delete that folder")
        return
    shutil.rmtree(part, ignore_errors=True)
    (part / "done").mkdir(parents=True)
    note.write_text(said)


_HOP = {"connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade"}  # headers that are about one connection
_OURS = _HOP - {"content-length"} | {"date", "server", "x-request-id"}  # in answers Serve has its own, and the program got its id from Serve

# Linux sends the program SIGTERM when the thread that started it ends, however it ends. (Not by preexec_fn: that runs Python after a fork, and
# in Ray's processes other threads may hold locks then.)
_START = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"  # PR_SET_PDEATHSIG, SIGTERM


class _Replica:
    """A running `glimpse serve`, to which requests are passed, and their answers back as they come. It ends with its program, and the
    program with it."""

    def __init__(self, flags: Sequence[str], env: Mapping[str, str]):
        self._session: Any = None
        self._child: subprocess.Popen | None = None
        self._port = 0
        self._runs = self._ending = False
        self._lines: collections.deque[str] = collections.deque(maxlen=20)  # the last ones that it said
        flags = list(flags)
        if not {"-t", "--threads"} & {flag.partition("=")[0] for flag in flags}:
            flags += ["--threads", str(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))]
        listens = threading.Event()
        program = Path(glimpse.__file__).parent / "bin" / "glimpse"
        threading.Thread(target=self._attend, args=(program, flags, env, listens), daemon=True).start()
        listens.wait()
        while not self._healthy():
            if self._child is None or self._child.poll() is not None:
                raise RuntimeError("glimpse serve did not start: " + "".join(self._lines))
            time.sleep(0.05)
        self._runs = True

    def _attend(self, program: Path, flags: list[str], env: Mapping[str, str], listens: threading.Event) -> None:
        """Starts the program and reads what it says until it ends."""
        command = [sys.executable, "-IS", "-c", _START, str(program), "serve", *flags, "--host", "127.0.0.1", "--port", "0"]
        try:
            self._child = child = subprocess.Popen(command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                                   stderr=subprocess.PIPE, text=True, errors="replace")
            assert child.stderr is not None
            for line in child.stderr:
                self._lines.append(line)
                if line.startswith("listening on http://"):
                    self._port = int(line.rpartition(":")[2])
                    listens.set()
                if " GET /health 200 " not in line:
                    logging.getLogger("ray.serve").info(line.rstrip())
            child.wait()
        except OSError as error:
            self._lines.append(str(error))
        listens.set()
        if self._runs and not self._ending:
            os._exit(1)  # Ray starts another

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    async def check_health(self) -> None:
        """Serve calls it, and replaces the replica after three failures. Raises RuntimeError."""
        if not await asyncio.to_thread(self._healthy):
            raise RuntimeError("glimpse serve does not answer /health: " + "".join(self._lines))

    async def ask(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> AsyncIterator[Any]:
        """Status and headers of the answer, then its body in pieces. Where the reader stops, the program's answer stops, too."""
        import aiohttp
        import yarl
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None),
                                                  auto_decompress=False, skip_auto_headers=["Accept-Encoding", "Content-Type", "User-Agent"])
        url = yarl.URL(f"http://127.0.0.1:{self._port}{target}", encoded=True)
        async with self._session.request(method, url, headers=headers, data=body, allow_redirects=False) as answer:
            yield answer.status, [(name, value) for name, value in answer.headers.items() if name.lower() not in _OURS]
            async for piece in answer.content.iter_any():
                yield piece

    def __del__(self) -> None:
        self._ending = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()


class _Ingress:
    """Passes requests to the replicas: those about the same picture to the same one."""

    def __init__(self, replicas: Any):
        self._replicas = replicas

    async def __call__(self, request: "Request") -> "Response":
        from ray.serve.exceptions import BackPressureError, RayServeException
        from starlette.responses import StreamingResponse
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path == "/metrics":  # of one replica, whichever: nobody can use that
            return _refusal(404, "not_found_error", "each replica counts for itself, at its own port; Ray has metrics of the whole")
        body = await request.body()
        key = request.headers.get("x-glimpse-affinity") or _picture_key(body)
        target = urllib.parse.quote(path) + ("?" + request.url.query if request.url.query else "")
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        replicas = self._replicas.options(method_name="ask", stream=True, session_id=key)
        for last in (False, True):
            answer = replicas.remote(request.method, target, headers, body)
            try:
                status, said = await anext(answer)
                break
            except BackPressureError:
                return _refusal(429, "rate_limit_error", "all replicas are busy")
            except (ray.exceptions.RayError, RayServeException) as error:  # the replica is lost; an answer has no side effects
                if last:
                    return _refusal(503, "unavailable_error", f"no replica answers ({type(error).__name__})")
                await asyncio.sleep(1)  # until Ray knows that it is lost

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in answer:
                    yield piece
            finally:
                answer.cancel()

        out = StreamingResponse(pieces(), status)
        out.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in said]
        return out


def _refusal(status: int, kind: str, message: str) -> "Response":
    from starlette.responses import JSONResponse
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, {} if status == 404 else {"Retry-After": "1"})


def _picture_key(body: bytes) -> str:
    """What a request's first picture is known by: its uuid, or a hash of its URL; "" if there is none."""
    try:
        request = json.loads(body)
        turns = request.get("messages") or request.get("input")  # chat completions, responses
        for part in (part for turn in turns for part in turn.get("content") or () if isinstance(part, dict)):
            if part.get("uuid"):
                return str(part["uuid"])
            if url := part.get("image_url"):
                return hashlib.sha256((url["url"] if isinstance(url, dict) else url).encode()).hexdigest()
    except (ValueError, TypeError, KeyError, AttributeError):  # the program says what is wrong with it
        pass
    return ""


def deployment(*flags: str, env: Mapping[str, str] | None = None, ingress: Mapping[str, Any] | None = None, **options: Any) -> "serve.Application":
    """An application for ray.serve.run: `glimpse serve` in replicas, with everything that it answers but /metrics.

        app = glimpse.ray.deployment("--model", "DIR", ray_actor_options={"num_cpus": 16}, max_ongoing_requests=16,
                                     autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8})
        ray.serve.run(app)

    Requests about the same picture (or with the same X-Glimpse-Affinity) meet the same replica, which has its prefix, unless that has
    max_ongoing_requests already; without a picture they meet any. A request whose replica is lost before it answered is asked again, once.

    flags: of `glimpse serve`. --threads is the replica's num_cpus if not said otherwise. env: further environment of the program, such as
    GLIMPSE_SERVE_API_KEY, which flags would show to others. options: Serve's, of the replicas. ingress: Serve's options of what passes
    requests on, for example {"num_replicas": 2}. Raises ValueError.
    """
    from ray import serve
    for flag in flags:
        if flag.partition("=")[0] in ("--host", "--port", "--ssl-cert-file", "--ssl-key-file"):
            raise ValueError(f"{flag}: clients meet Serve's proxies, not the program; serve.start(http_options=...) says where they listen")
    router = {"request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"}
    replicas = serve.deployment(**{"name": "glimpse", "max_ongoing_requests": 16, "request_router_config": router, **options})(_Replica)
    front = serve.deployment(**{"name": "glimpse-ingress", "max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}, **(ingress or {})})
    return front(_Ingress).bind(replicas.bind(flags, dict(env or {})))
