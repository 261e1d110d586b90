"""What glimpse serve says of itself in /openapi.json, against what it does."""
import base64
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import schemathesis
from PIL import Image
from openapi_spec_validator import validate

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "cli"))
from serving import Server, asked  # noqa: E402

FRAME = io.BytesIO()
Image.new("RGB", (56, 56), "green").save(FRAME, "JPEG")
CLIP = "data:video/jpeg;base64," + ",".join(2 * [base64.b64encode(FRAME.getvalue()).decode()])  # two frames
KEY = "secret"
KNOWN = "known"  # the uuid of a picture that the server has
IDS = 500  # the built-in model has more tokens
# 28 x 28 pixels: a request may show many.
PICTURE = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAGUlEQVR42mNgQAH/UQDDqOQASY6GySCUBABpwYaIWRouRwAAAABJ"
           "RU5ErkJggg==")


def fitted(value, name=""):
    """Values that the description leaves to the model and to what the server has, as they are right here; lengths are cut, so that no
    request runs long. What is wrong stays wrong."""
    if isinstance(value, dict):
        if name == "video_url" and value.get("url") and isinstance(value["url"], str):
            value = {**value, "url": CLIP}
        if name == "mm_processor_kwargs" and value.get("num_frames"):
            value = {**value, "fps": None}
        if name == "logit_bias":
            value = {str(int(key) % IDS) if key.isascii() and key.isdigit() else key: bias for key, bias in value.items()}
        return {key: fitted(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [fitted(each, name) for each in value]
    if isinstance(value, str):
        if name == "model":
            return "glimpse-tiny"
        if name == "prune":
            return "glimpse"
        if name == "video_url" and value:
            return CLIP
        if name in ("image_url", "url") and value:
            return value if value == CLIP else PICTURE
        if name == "uuid" and 0 < len(value) <= 256:
            return KNOWN
    elif name in ("fps", "video_start", "video_end") and isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-9 <= value <= 1e9:
        return 0 if name == "video_start" else max(value, 1)  # of two frames
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 and value == int(value):
        if name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            return min(value, 2) if value <= 1 << 30 else value
        if name == "min_pixels":
            return min(value, 3136) if value <= 1 << 24 else value
        if name == "max_pixels":
            return max(value, 128 * 784)
        if name == "num_frames":
            return min(value, 2) if value <= 768 else value
        if name == "tokens":
            return value % IDS
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    """For the run of schemathesis, which imports this file."""
    case.body = fitted(case.body)


class Locked(Server):
    """A server with a key, which requests have unless they say otherwise."""

    def request(self, method, path, body=None, headers=None):
        return super().request(method, path, body, {"Authorization": "Bearer " + KEY, **(headers or {})})


class OpenAPI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # As many answers may run together as one request may ask for.
        cls.server = Locked("--api-key", KEY, "--parallel", 16, "--max-new-tokens", 2, "--max-images", 100, "--max-videos", 100)
        cls.addClassCleanup(cls.server.stop)
        cls.description = cls.server.get("/openapi.json")[1]

    def test_description(self):
        validate(self.description)
        # It has no parts that nothing refers to.
        text = str(self.description)
        for kind, parts in self.description["components"].items():
            for name in parts:
                self.assertTrue(kind == "securitySchemes" or f"'#/components/{kind}/{name}" in text, name)

    def test_routes(self):
        """The paths are those of the server, with the methods that they take; some need a key."""
        self.assertEqual(list(self.description["paths"]), [
            "/", "/examples/{number}", "/openapi.json", "/health", "/v1/health", "/metrics", "/props", "/v1/models", "/v1/models/{model}",
            "/v1/chat/completions", "/v1/responses", "/v1/tokenize", "/v1/detokenize"])
        for template, methods in self.description["paths"].items():
            path = template.format(number=0, model="glimpse-tiny")
            for method, operation in methods.items():
                with self.subTest(path=path, method=method):
                    body, right = ("{", 400) if method == "post" else (None, 200)
                    self.assertEqual(self.server.request(method.upper(), path, body)[0], right)
                    without_key = self.server.request(method.upper(), path, body, {"Authorization": ""})[0]
                    self.assertEqual(without_key, right if operation.get("security") == [] else 401)
            status, headers, _ = self.server.request("DELETE", path)
            self.assertEqual((status, headers["allow"].lower().split(", ")), (405, list(methods)))

    def test_requests(self):
        """Right and wrong requests, made from the description, get what it says."""
        known = asked(picture=PICTURE)
        known["messages"][0]["content"][0]["uuid"] = KNOWN
        self.assertEqual(self.server.chat(known)[0], 200)
        with tempfile.TemporaryDirectory(prefix="glimpse-openapi-") as folder:
            result = subprocess.run(
                [sys.executable, "-B", "-m", "schemathesis.cli", "run", self.server.url + "/openapi.json",
                 "--header", "Authorization: Bearer " + KEY, "--checks", "all", "--phases", "examples,coverage,fuzzing",
                 "--max-examples", "10", "--generation-deterministic", "--request-timeout", "60", "--output-sanitize", "false",
                 "--continue-on-failure", "--no-color"],
                cwd=folder, env={**os.environ, "SCHEMATHESIS_HOOKS": HERE.stem, "PYTHONPATH": str(HERE.parent)}, capture_output=True,
                text=True, timeout=600)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(result.stdout, r"Tested: +12\n")  # all but the description
        self.assertEqual(self.server.get("/health")[0], 200)
        self.assertEqual(self.server.idle(), 0)


if __name__ == "__main__":
    unittest.main()
