"""The shipped configurations of reverse proxies before two replicas of glimpse serve; what those of others and the dashboard name."""
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, IMAGES, QUESTION, ROOT, run  # noqa: E402
from serving import Server, asked  # noqa: E402

CONFIGS = ROOT / "configs/serving"
ENDLESS = {"max_tokens": 3900, "ignore_eos": True}  # many seconds


def metric(server, name):
    return float(re.search(rf"(?m)^glimpse:{name}{{.*}} (\S+)$", server.get("/metrics")[1].decode())[1])


def answers(server):
    """How many it has given."""
    return metric(server, "e2e_request_latency_seconds_count")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


class Proxy(Server):
    """The proxy as if it were a server; `changes` are made to its configuration, where PORT is the port."""

    def __init__(self, command, name, folder, changes):
        self.port = free_port()
        text = (CONFIGS / name).read_text()
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new.replace("PORT", str(self.port)))
        (folder / name).write_text(text)
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen([*command, folder / name], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


class Proxied:
    """Tests of a proxy before `replicas`, of which the first gives what runs no time when it ends. `started` starts the proxy with
    what its configuration needs to run anywhere and as any user."""
    FLAGS = [("--grace", 0), ()]

    @classmethod
    def setUpClass(cls):
        cls.replicas = [Server(*flags) for flags in cls.FLAGS]
        cls.addClassCleanup(lambda: [each.stop() for each in cls.replicas])
        folder = tempfile.TemporaryDirectory(prefix="glimpse-proxy-")
        cls.addClassCleanup(folder.cleanup)
        changes = {f"127.0.0.1:{8081 + i}": f"127.0.0.1:{each.port}" for i, each in enumerate(cls.replicas)}
        cls.proxy = cls.started(Path(folder.name), changes)
        cls.addClassCleanup(cls.proxy.stop)

    def chosen(self, ask):
        """Which replica answered what `ask` asks for; all of it must reach the same."""
        before = [answers(each) for each in self.replicas]
        ask()
        more = [answers(each) - count for each, count in zip(self.replicas, before)]
        self.assertEqual(sorted(map(bool, more)), [False, True], more)
        return more.index(max(more))

    def short(self, **headers):
        status, answer = self.proxy.chat({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}, **headers)
        self.assertEqual(status, 200, answer)

    def until(self, what):
        deadline = time.monotonic() + 120  # for a machine with much else to do
        while not what():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_answers(self):
        status, answer = self.proxy.chat(asked())
        self.assertEqual((status, text_of(answer)), (200, ANSWER), answer)
        chunks = self.proxy.stream(asked())
        self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in chunks), ANSWER)
        status, answer = self.proxy.chat({"messages": []})
        self.assertEqual((status, answer["error"]["param"]), (400, "messages"))
        self.assertEqual(self.proxy.get("/metrics")[0], 404)

    def test_large_bodies(self):
        self.assertEqual(text_of(self.proxy.chat(asked(user="x" * (20 << 20)))[1]), ANSWER)
        with socket.create_connection(("127.0.0.1", self.proxy.port), 10) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n")
            self.assertIn(b" 413 ", s.recv(100))

    def test_streams_are_not_held_back_and_clients_may_leave(self):
        for stream in (True, False):
            with contextlib.closing(self.proxy.connect()) as connection:
                connection.request("POST", "/v1/chat/completions", json.dumps(asked(stream=stream, **ENDLESS)))
                if stream:
                    self.assertTrue(connection.getresponse().readline().startswith(b"data: {"))
                self.until(lambda: sum(metric(each, "num_requests_running") for each in self.replicas))  # it is far from its end
            for each in self.replicas:
                each.idle(8)

    def test_affinity(self):
        used = set()
        for i in range(4):
            picture = "data:image/jpeg;base64," + base64.b64encode((IMAGES / f"read_{i + 1:03}.jpg").read_bytes()).decode()
            cached = []

            def ask():
                for question in (QUESTION, "What letter is on the blue square?"):
                    status, answer = self.proxy.chat(asked(question, picture), **{"X-Glimpse-Affinity": f"conversation {i}"})
                    cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            used.add(self.chosen(ask))
            self.assertEqual([tokens > 0 for tokens in cached], [False, True])
        used |= {self.chosen(lambda: self.short(**{"X-Glimpse-Affinity": str(i)})) for i in range(12)}
        self.assertEqual(used, {0, 1})
        self.assertEqual({self.chosen(self.short) for _ in range(12)}, {0, 1})  # by connection

        def over_one_connection():
            with contextlib.closing(self.proxy.connect()) as connection:
                for _ in range(4):
                    connection.request("POST", "/v1/chat/completions", json.dumps(asked(max_tokens=1)))
                    self.assertEqual(connection.getresponse().read()[:1], b"{")
        self.chosen(over_one_connection)

    def again(self, which):
        """Starts a replica again, which got a signal; waits until each has requests."""
        port = self.replicas[which].port
        self.replicas[which].stop()
        self.replicas[which] = Server(*self.FLAGS[which], port=port)
        before = [answers(each) for each in self.replicas]

        def both_answer():
            with contextlib.suppress(AssertionError):  # the proxy may not know yet that there is one
                self.short()
            return all(answers(each) > count for each, count in zip(self.replicas, before))
        self.until(both_answer)

    def loses_nothing(self, which, how, streams=False):
        """Under load a replica gets the signal, and is started again."""
        over, wrong = threading.Event(), []
        body = asked(user="x" * 300000)  # comes in several pieces

        def load(i):
            for count in itertools.count():
                if over.is_set():
                    break
                try:
                    headers = {"X-Glimpse-Affinity": f"{i}-{count}"}
                    if streams and count % 2:
                        text = "".join(c["choices"][0]["delta"].get("content", "") for c in self.proxy.stream(body))
                    else:
                        status, text = self.proxy.chat(body, **headers)
                        text = text_of(text) if status == 200 else (status, text)
                    if text != ANSWER:
                        wrong.append(text)
                except Exception as error:
                    wrong.append(error)
        threads = [threading.Thread(target=load, args=[i]) for i in range(6)]
        before = [answers(each) for each in self.replicas]
        for thread in threads:
            thread.start()
        try:
            self.until(lambda: all(answers(each) > count + 3 for each, count in zip(self.replicas, before)))
            self.until(lambda: metric(self.replicas[which], "num_requests_running"))
            self.replicas[which].tell(how)
            self.assertEqual(self.replicas[which].stop(), 0 if how == signal.SIGTERM else -how)
            time.sleep(0.3)
            self.again(which)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])

    def test_a_replica_is_killed(self):
        self.loses_nothing(1, signal.SIGKILL)

    def test_a_replica_ends(self):
        """What runs ends, streams too."""
        self.loses_nothing(1, signal.SIGTERM, streams=True)

    def test_a_replica_ends_without_grace(self):
        """What runs gets a 503, and is asked again."""
        self.loses_nothing(0, signal.SIGTERM)

    def test_no_replica(self):
        for each in self.replicas:
            each.tell(signal.SIGKILL)
            each.stop()
        try:
            status, headers, answer = self.proxy.request("POST", "/v1/chat/completions", asked())
            self.assertEqual((status, answer["error"]["type"], headers["retry-after"]), (503, "unavailable_error", "1"))
        finally:
            self.replicas[1] = Server(port=self.replicas[1].port)
            self.again(0)


@unittest.skipUnless(os.environ.get("CI") or shutil.which("nginx"), "nginx is not installed")
class Nginx(Proxied, unittest.TestCase):
    @staticmethod
    def started(folder, changes):
        kinds = ("proxy", "fastcgi", "uwsgi", "scgi")  # it makes the folders of all
        changes |= {"listen 8080": "listen 127.0.0.1:PORT", "user www-data": "user root", "/run/": f"{folder}/",
                    "/var/log/nginx/": f"{folder}/", "/var/lib/nginx/": f"{folder}/",
                    "http {": "http {" + "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)}
        return Proxy(["nginx", "-e", folder / "error.log", "-g", "daemon off;", "-c"], "nginx.conf", folder, changes)


@unittest.skipUnless(os.environ.get("CI") or shutil.which("haproxy"), "HAProxy is not installed")
class Haproxy(Proxied, unittest.TestCase):
    @staticmethod
    def started(folder, changes):
        changes |= {"bind :8080": "bind 127.0.0.1:PORT", "    user haproxy\n    group haproxy\n": ""}
        return Proxy(["haproxy", "-f"], "haproxy.cfg", folder, changes)


class Named(unittest.TestCase):
    """What the shipped files name exists."""

    def test_metrics(self):
        server = Server()
        self.addCleanup(server.stop)
        self.assertEqual(server.chat(asked())[0], 200)
        self.assertEqual(server.chat({"messages": []})[0], 400)
        kinds, labels = {}, {"le", "instance"}  # instance: Prometheus' own
        for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
            labels |= {label for sample in family.samples for label in sample.labels}
            ends = {"counter": ("", "_total"), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
            kinds |= {family.name + end: family.type for end in ends}
        board = json.loads((ROOT / "docs/grafana.json").read_text())
        expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        variables = {each["name"]: each for each in board["templating"]["list"]}
        self.assertEqual(set(variables), {"datasource", "model", "instance"})
        named = set()
        for expression in expressions + [variables[name]["definition"] for name in ("model", "instance")]:
            with self.subTest(expression=expression):
                self.assertEqual([expression.count(c) for c in "([{"], [expression.count(c) for c in ")]}"])
                for before, name in re.findall(r"(\w*\(?)(glimpse:\w+)", expression):
                    self.assertIn(name, kinds)
                    self.assertEqual(before == "rate(", kinds[name] != "gauge")
                    named.add(name)
                used = re.findall(r"(\w+)=~", expression) + re.findall(r"by \((\w+)\)", expression) + re.findall(r", (\w+)\)$", expression)
                self.assertLessEqual(set(used), labels)
                self.assertLessEqual(set(re.findall(r"\$(\w+)", expression)), set(variables) | {"__rate_interval"})
        shown = {re.sub("_(bucket|sum|count|total)$", "", name) for name in named}
        self.assertEqual({re.sub("_(bucket|sum|count|total)$", "", name) for name in kinds}, shown)  # none is forgotten
        places = [(p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy) for p in board["panels"]
                  for dx in range(p["gridPos"]["w"]) for dy in range(p["gridPos"]["h"])]
        self.assertEqual(len(set(places)), len(places))  # no panel lies on another

    def test_settings(self):
        known = set(re.findall(r"--[a-z][a-z-]+|GLIMPSE_SERVE_[A-Z_]+", run("serve", "--help").stdout))
        texts = {path.name: path.read_text() for path in CONFIGS.iterdir()}
        self.assertEqual(sorted(texts), ["glimpse.service", "haproxy.cfg", "kubernetes.yaml", "nginx.conf"])
        named = set(re.findall(r"GLIMPSE_SERVE_[A-Z_]+", "".join(texts.values())))
        for flags in re.findall(r"glimpse serve([^`\n]*)", "".join(texts.values())):
            named |= set(re.findall(r"--[a-z-]+", flags))
        self.assertEqual(named - known, set())
        deployment, service, _ = yaml.safe_load_all(texts["kubernetes.yaml"])
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        env = {each["name"]: each["value"] for each in container["env"]}
        self.assertGreater(pod["terminationGracePeriodSeconds"],
                           float(env["GLIMPSE_SERVE_GRACE"]) + container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.assertEqual(env["GLIMPSE_SERVE_PORT"], str(container["ports"][0]["containerPort"]))
        self.assertEqual(service["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"])
        self.assertEqual({each["name"] for each in container["volumeMounts"]}, {each["name"] for each in pod["volumes"]})
        unit = texts["glimpse.service"]
        grace, limit = (float(re.search(name + r"=(\d+)", unit)[1]) for name in ("GLIMPSE_SERVE_GRACE", "TimeoutStopSec"))
        self.assertGreater(limit, grace)


if __name__ == "__main__":
    unittest.main()
