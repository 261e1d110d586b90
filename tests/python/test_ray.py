"""Ray: a cluster of two workers on this machine, of which parts are killed while they work."""
import base64
import contextlib
import http.client
import io
import json
import logging
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent import futures
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/cli"))
from program import ANSWER, IMAGE, IMAGES, KEEP, QUESTION, TEST  # noqa: E402

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_DATA_DISABLE_PROGRESS_BARS="1",
                  RAY_DATA_USE_DATASOURCE_V2="0")  # the second way to read Parquet starts 16 processes for two files

import openai  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

import glimpse  # noqa: E402
import glimpse.ray  # noqa: E402

SMALL = {"object_store_memory": 100 << 20}
WORKER = {**SMALL, "num_cpus": 3}  # one of them left is enough for two engines, and to read and write
folder: str
cluster: Cluster
workers: list


def setUpModule():
    global folder, cluster, workers
    os.environ["RAY_TMPDIR"] = folder = tempfile.mkdtemp(prefix="ray-")  # short: paths of the sockets below it have 107 characters at most
    logging.disable(logging.WARNING)  # Ray tells much of what goes well
    unittest.addModuleCleanup(shutil.rmtree, folder, True)
    config = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4,  # a lost worker is noticed
              "idle_worker_killing_time_threshold_ms": 600000, "prestart_worker_first_driver": False,  # processes start slowly
              "worker_niceness": 0}
    cluster = Cluster(True, head_node_args={**SMALL, "num_cpus": 0, "include_dashboard": False, "_system_config": config})
    unittest.addModuleCleanup(cluster.shutdown)
    workers = [cluster.add_node(**WORKER), cluster.add_node(**WORKER)]
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    unittest.addModuleCleanup(ray.shutdown)


def processes(title, worker=None):
    """Processes whose title has this in it, of one worker or of all the cluster."""
    above = [psutil.Process(each.process.pid) for each in worker.all_processes["raylet"]] if worker else [psutil.Process()]
    out = []
    for process in (each for root in above for each in root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if re.search(title, " ".join(process.cmdline())):
                out.append(process)
    return out


def until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not (got := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds} s")
        time.sleep(0.02)
    return got


@contextlib.contextmanager
def meanwhile(do):
    """Does something in another thread. Raises what it raised."""
    with futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(do)
        yield
        done.result()


def recorded(count):
    """The first of the built-in model's test rows."""
    rows = [json.loads(line) for line in (TEST / "rows.jsonl").read_text().splitlines()[:count]]
    return [{"id": row["id"], "question": row["question"], "image": f"{row['dataset']}/{row['image']}", "code": f"{row['id']:03}"} for row in rows]


def alone(rows):
    """What an engine answers by itself."""
    asked = [{"images": str(IMAGES.parent / row["image"]), "question": row["question"]} for row in rows]
    with glimpse.Engine(threads=1) as engine:
        return {row["id"]: (answer.text, answer.finish_reason, answer.prompt_tokens, answer.visual_tokens, answer.kept_tokens, "")
                for row, answer in zip(rows, engine.ask_many(asked))}


def added(row):
    return tuple(row[name] for name in glimpse.ray.ADDED)


class Batches(unittest.TestCase):
    """AskMany by itself."""

    @classmethod
    def setUpClass(cls):
        cls.ask = glimpse.ray.AskMany({"threads": 1}, {"max_new_tokens": 20}, image_root=IMAGES)

    def test_pictures_of_every_kind(self):
        file = Path(IMAGE).read_bytes()
        name = Path(IMAGE).name
        kinds = [name, IMAGE, file, {"bytes": file, "path": None}, {"bytes": None, "path": name}, [name], [file], None, [], [name, file],
                 "data:image/jpeg;base64," + base64.b64encode(file).decode(), float("nan")]
        visual = [256] * 7 + [0, 0, 512, 256, 0]
        out = self.ask({"question": [QUESTION] * len(kinds), "image": kinds})
        self.assertEqual(out["error"], [""] * len(kinds))
        self.assertEqual(out["visual_tokens"], visual)
        self.assertEqual([text for text, tokens in zip(out["text"], visual) if tokens == 256], [ANSWER] * 8)
        lists = self.ask(pa.table({"question": [QUESTION] * 2, "image": [[name, name], None], "x": [["a"], []]}))
        self.assertEqual((lists["visual_tokens"].to_pylist(), lists["x"].to_pylist()), ([512, 0], [["a"], []]))
        self.assertEqual(lists.schema.types[-len(glimpse.ray.ADDED):], list(glimpse.ray.ADDED.values()))
        self.assertEqual(self.ask(pa.table({"question": ["Hello"]}))["visual_tokens"].to_pylist(), [0])

    def test_videos(self):
        clip = str(ROOT / "tests/data/videos/h264.mp4")
        kinds = [clip, Path(clip).read_bytes(), [clip, clip], None, {"bytes": None, "path": clip}]
        out = self.ask({"question": ["What?"] * 5, "video": kinds, "image": [None, IMAGE, None, None, None]})
        self.assertEqual((out["error"], out["visual_tokens"]), ([""] * 5, [280, 256 + 280, 560, 0, 280]))
        self.assertRegex(self.ask({"question": ["What?"], "video": [7]})["error"][0], "'video' must be.* int")

    def test_what_cannot_be_answered(self):
        questions = [QUESTION, None, 7, QUESTION, "word " * 5000, QUESTION, QUESTION]
        out = self.ask({"question": questions, "image": [IMAGE, IMAGE, IMAGE, "nowhere.png", None, b"none", 7]})
        for got, words in zip(out["error"], ("^$", "'question' must be a text", "not 7", "nowhere.png", "context", "image", "'image' must be.* int")):
            self.assertRegex(got, words)
        self.assertEqual((out["text"], out["finish_reason"]), ([ANSWER] + [""] * 6, ["stop"] + ["error"] * 6))

    def test_columns(self):
        with self.assertRaisesRegex(ValueError, "no column 'question'; they have 'q'"):
            self.ask({"q": ["x"]})
        with self.assertRaisesRegex(ValueError, "column 'text' already"):
            self.ask(pa.table({"question": ["x"], "text": ["y"]}))
        some = glimpse.ray.AskMany({"threads": 1}, {"max_new_tokens": 1}, columns=["id"])
        self.assertEqual(list(some({"question": ["x"], "text": ["y"], "id": [3]})), ["id", *glimpse.ray.ADDED])

    def test_wrong_settings(self):
        with self.assertRaisesRegex(glimpse.Error, "/nowhere"):
            glimpse.ray.AskMany({"model": "/nowhere"})
        self.assertIn("nonsense", glimpse.ray.AskMany({"threads": 1}, {"prune": "nonsense"})({"question": ["x"]})["error"][0])


class Process(unittest.TestCase):
    def test_without_ray(self):
        code = "import sys, glimpse\nassert 'ray' not in sys.modules\nsys.modules['ray'] = None\nimport glimpse.ray"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        self.assertIn("pip install 'glimpse[ray]'", result.stderr.splitlines()[-1])


class Replicas(unittest.TestCase):
    """deployment() on the cluster."""

    @classmethod
    def setUpClass(cls):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            cls.port = free.getsockname()[1]
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": cls.port})
        cls.addClassCleanup(serve.shutdown)
        app = glimpse.ray.deployment("--cache-mb=64", "--served-model-name", "tiny", health_check_period_s=1,
                                     autoscaling_config={"min_replicas": 2, "max_replicas": 2})
        serve.run(app, route_prefix="/glimpse")
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.port}/glimpse/v1", api_key="none", max_retries=0)

    def messages(self, picture, question=QUESTION):
        data = base64.b64encode((IMAGES / f"read_{picture:03}.jpg").read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def ask(self, picture, question=QUESTION, **more):
        return self.client.chat.completions.create(model="tiny", messages=self.messages(picture, question), **more)

    def programs(self):
        return processes("glimpse serve ")

    def running(self):
        """Requests that each of the programs answers."""
        out = {}
        for program in self.programs():
            for port in [each.laddr.port for each in program.net_connections() if each.status == "LISTEN"]:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/metrics")
                out[program.pid] = int(re.search(r"num_requests_running\{.*\} (\d+)$", connection.getresponse().read().decode(), re.M)[1])
        return out

    def test_answers(self):
        answer = self.ask(0, extra_body={"pruning": {"return": ["keep"]}})
        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.glimpse["images"][0]["keep"], KEEP)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in self.ask(0, stream=True)), ANSWER)
        url = self.messages(0)[0]["content"][0]["image_url"]["url"]
        content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": QUESTION}]
        self.assertEqual(self.client.responses.create(model="tiny", input=[{"role": "user", "content": content}]).output_text, ANSWER)
        self.assertEqual(self.client.models.list().data[0].id, "tiny")
        with self.assertRaisesRegex(openai.NotFoundError, "'large' does not exist"):
            self.client.chat.completions.create(model="large", messages=[{"role": "user", "content": "x"}])
        with self.assertRaisesRegex(openai.BadRequestError, "messages"):
            self.client.chat.completions.create(model="tiny", messages=[])

    def test_pictures_stay_with_their_replica(self):
        for picture in range(6):
            self.ask(picture, max_tokens=1)
        for picture in range(6):
            self.assertGreater(self.ask(picture, "What number is on the green square?", max_tokens=1).usage.prompt_tokens_details.cached_tokens, 100)
        # With both replicas at work, or this would show nothing.
        with contextlib.ExitStack() as streams:
            for picture in range(6):
                streams.enter_context(self.ask(picture, stream=True, max_tokens=3000, extra_body={"ignore_eos": True}))
            until(lambda: sum(self.running().values()) == 6, 10)
            self.assertTrue(all(self.running().values()), self.running())
        until(lambda: not any(self.running().values()), 10)

    def test_client_that_goes_away(self):
        for stream in (True, False):
            with self.subTest(stream=stream), contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
                connection.request("POST", "/glimpse/v1/chat/completions", json.dumps(
                    {"messages": self.messages(0), "stream": stream, "max_tokens": 3500, "ignore_eos": True}))
                if stream:
                    answer = connection.getresponse()
                    self.assertIn("delta", answer.readline().decode())
                    self.assertEqual(answer.headers.get_all("Server"), ["uvicorn"])
                until(lambda: any(self.running().values()), 10)
                if stream:
                    answer.close()
                connection.close()
                until(lambda: not any(self.running().values()), 5)

    def test_replica_that_is_killed(self):
        before = self.running()
        with self.ask(0, stream=True, max_tokens=3500, extra_body={"ignore_eos": True}) as stream:
            next(stream)
            program = next(pid for pid, count in self.running().items() if count)
            psutil.Process(program).parent().kill()
            with self.assertRaises(Exception):  # not an end as if all had come
                for _ in stream:
                    pass
        self.assertEqual(self.ask(0).choices[0].message.content, ANSWER)
        until(lambda: not psutil.pid_exists(program))  # its program ends, too
        until(lambda: len(self.programs()) == 2)
        other = next(pid for pid in before if pid != program)
        psutil.Process(other).kill()  # the program alone: its replica follows
        self.assertEqual([self.ask(picture).choices[0].finish_reason for picture in range(4)], ["stop"] * 4)
        until(lambda: len(self.programs()) == 2 and not {program, other} & {each.pid for each in self.programs()})

    def test_z_the_end(self):
        programs = self.programs()
        self.assertEqual(len(programs), 2)
        serve.shutdown()
        self.assertEqual([program for program in programs if program.is_running()], [])

    def test_refused(self):
        with self.assertRaisesRegex(ValueError, "--port=80: clients meet"):
            glimpse.ray.deployment("--port=80")


class Rows(unittest.TestCase):
    """ask_many on the cluster."""

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(dir=folder))

    def files(self, name="out.part/rows"):
        of = self.dir / name
        return sorted(of.iterdir()) if of.exists() else []

    def example(self):
        """Runs examples/python/batch_ray.py; what it printed."""
        arguments = ["batch_ray.py", "rows.jsonl", "out", "--image-root", IMAGES.parent, "--actors", 2, "--batch", 8]
        with mock.patch("sys.argv", list(map(str, arguments))), contextlib.chdir(self.dir), contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(ROOT / "examples/python/batch_ray.py"), run_name="__main__")
        return printed.getvalue()

    def test_stopped_and_killed(self):
        """An engine is killed in the middle, then Ctrl-C; then the same again, in the middle of which a worker is lost with all that it holds."""
        rows = recorded(96)
        bad = ['{"id": 1', "[7]", json.dumps({"id": "a", "question": "x", "image": "nowhere.png", "n": [1, "b"]}), '{"id": "b"}']
        (self.dir / "rows.jsonl").write_text("\n".join([*map(json.dumps, rows), "", *bad]))

        def stop():
            until(lambda: len(self.files()) >= 2)
            killed = processes("^ray::.*AskMany")[0]
            killed.kill()
            until(lambda: len(self.files()) >= 5 and killed.pid not in {each.pid for each in processes("^ray::.*AskMany")})
            os.kill(os.getpid(), signal.SIGINT)

        with meanwhile(stop), self.assertRaises(KeyboardInterrupt):
            self.example()
        self.assertFalse((self.dir / "out").exists())
        done = {file.name: file.read_bytes() for file in self.files() if (self.dir / "out.part/done" / f"{file.stem}.parquet").exists()}
        self.assertTrue(2 <= len(done) < 12, done.keys())

        def lose():
            until(lambda: len(self.files()) > len(done))
            lost = next(worker for worker in workers if processes("^ray::.*AskMany", worker))
            workers.remove(lost)
            cluster.remove_node(lost, allow_graceful=False)

        with meanwhile(lose):
            self.assertIn("100 rows, 96 answered\n", self.example())  # Ray may have printed, too
        self.assertEqual([file.name for file in self.files("")], ["out", "rows.jsonl"])
        self.assertEqual({name: (self.dir / "out" / name).read_bytes() for name in done}, done)
        out = [json.loads(line) for file in self.files("out") for line in file.read_text().splitlines()]
        good = sorted((row for row in out if not row["error"]), key=lambda row: row["id"])
        self.assertEqual([{name: row[name] for name in rows[0]} for row in good], rows)
        self.assertEqual({row["id"]: added(row) for row in good}, alone(rows))
        wrong = sorted((row for row in out if row["error"]), key=lambda row: row["error"])
        for row, words in zip(wrong, ("'question' must be a text", "nowhere.png", "not JSON", "not a JSON object"), strict=True):
            self.assertIn(words, row["error"])
        self.assertEqual((wrong[1]["n"], wrong[2]["line"]), ([1, "b"], bad[0]))
        with self.assertRaisesRegex(FileExistsError, "overwrite=True"):
            self.example()

    def test_parquet(self):
        """Pictures in the rows."""
        rows = recorded(6)
        pictures = [[(IMAGES.parent / row["image"]).read_bytes()] for row in rows]
        table = pa.table({"n": [row["id"] for row in rows], "q": [row["question"] for row in rows], "picture": pictures})
        for half in range(2):
            pq.write_table(table.slice(half * 3, 3), self.dir / f"{half}.parquet")
        (self.dir / "out").mkdir()
        glimpse.ray.ask_many([self.dir / "0.parquet", self.dir / "1.parquet"], self.dir / "out", actors=1, batch_size=4, question="q",
                             image="picture", columns=["n"], overwrite=True)
        out = pq.read_table(self.dir / "out")
        self.assertEqual((out.column_names, out.num_rows), (["n", *glimpse.ray.ADDED], len(rows)))
        self.assertEqual({row["n"]: added(row) for row in out.to_pylist()}, alone(rows))

    def test_refused(self):
        ask = lambda rows, **more: glimpse.ray.ask_many(rows, self.dir / "out", **{"actors": 1, **more})  # noqa: E731
        for words, call in ((".jsonl or .parquet", lambda: ask("rows.csv")), ("none", lambda: ask([])),
                            ("6 CPUs; 9 actors of 1", lambda: ask("rows.jsonl", actors=9))):
            with self.assertRaisesRegex(ValueError, words):
                call()


if __name__ == "__main__":
    unittest.main(warnings="ignore")
