#!/usr/bin/env python3
"""Times an engine from a picture file to the first and to the last token of an answer.

Usage: peer_answers.py --engine glimpse|llama.cpp|openvino|transformers --model PATH [--beside PATH] [--mmproj FILE] [--program FILE]
           [--bits auto|bf16|int8|int4] [--prune WHAT] [--keep COUNT] [--threads 2] [--tokens 32] [--json OUT] WARM.png PICTURE.png

glimpse is asked as a server, llama.cpp as a chat in its own program (llama-mtmd-cli), OpenVINO (GenAI's VLMPipeline) and transformers
in this process. Each loads first and is asked about the picture WARM, which is not counted; then the clock starts and it gets the name of the
file PICTURE: reading, resizing, encoder, prefill and decoding are in the times. Greedy, and the end of an answer is ignored. --beside is
what the model comes with: glimpse's pruning modules, llama.cpp's mmproj file. --prune is a composition for glimpse (whose
last method keeps --keep tokens) and the percentage to drop for OpenVINO's CDPruner. --mmproj is for glimpse with a GGUF model. Of programs of their own the
memory that was resident at most is told, loading included.
"""
import argparse
import json
import re
import subprocess
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

QUESTION = "What is in this picture?"
CONTEXT = 8192  # tokens that llama.cpp has room for


class Answer:
    """When the first and the last token came, and what was counted on the way."""

    def __init__(self):
        self.begin, self.first, self.last, self.tokens = time.perf_counter(), None, None, 0
        self.visual = self.kept = None

    def token(self, count=1):
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += count


class Engine:
    process = None  # a program of its own

    def warm(self, picture):
        self.ask(picture)

    def resident(self):
        """MiB at most until now, or nothing."""
        if self.process:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    def close(self):
        pass


class Glimpse(Engine):
    def __init__(self, options):
        self.options, self.pruning = options, {"prune": options.prune} | ({"keep": options.keep} if options.keep else {})
        self.process = subprocess.Popen(
            [options.program, "serve", "--port", "0", "--quiet", "--served-model-name", "m", "--model", options.model, "--new-modules", options.beside,
             "--weights", options.bits, "--threads", str(options.threads), "--media-path", Path(options.pictures[0]).resolve().parent,
             *(["--mmproj", options.mmproj] if options.mmproj else [])],
            stderr=subprocess.PIPE, text=True)  # fmt: skip
        self.address = re.match(r"listening on http://(\S+)", self.process.stderr.readline())[1]
        while self.reply("GET", "/health").status != 200:
            time.sleep(0.2)

    def reply(self, method, path, body=None):
        connection = HTTPConnection(self.address, timeout=3600)
        connection.request(method, path, body)
        return connection.getresponse()

    def ask(self, picture):
        content = [{"type": "image_url", "image_url": {"url": f"file:///{Path(picture).name}"}}, {"type": "text", "text": QUESTION}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": self.options.tokens, "ignore_eos": True, "temperature": 0,
                "stream": True, "pruning": self.pruning,
                "logprobs": True}  # fmt: skip  # so that tokens without a text are told, too
        answer = Answer()
        for line in self.reply("POST", "/v1/chat/completions", json.dumps(body)):
            if line.startswith(b"{"):  # not a stream: an error
                raise ValueError(line.decode())
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["logprobs"]:
                answer.token()
            if event.get("glimpse"):
                answer.visual, answer.kept = event["glimpse"]["visual_tokens"], event["glimpse"]["kept_tokens"]
        return answer

    def close(self):
        self.process.terminate()
        self.process.wait()


class LlamaCpp(Engine):
    def __init__(self, options):
        self.options, self.log, self.unread = options, tempfile.TemporaryFile(), ""
        # It prints a token before it computes the next: with one less, it is ready again when the last token is known.
        # Without a terminal of its own it shows what is typed here, too. Its messages of level 4 count the visual tokens.
        self.process = subprocess.Popen(
            [options.program, "-m", options.model, "--mmproj", options.beside, "-t", str(options.threads), "-c", str(CONTEXT), "-n", str(options.tokens - 1),
             "--temp", "0", "--ignore-eos", "-lv", "4"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0, start_new_session=True)  # fmt: skip
        self.until("\n> ")

    def more(self):
        some = self.process.stdout.read(1 << 16)
        if not some:
            raise ValueError(f"it ended: {self.messages()[-2000:]}")
        self.unread += some.decode(errors="replace")

    def until(self, mark):
        while mark not in self.unread:
            self.more()
        self.unread = self.unread.partition(mark)[2]

    def messages(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def say(self, text):
        self.process.stdin.write(f"{text}\n".encode())

    def warm(self, picture):
        """Without the picture: a chat's second one fails in this release. Its encoder has warmed up on loading."""
        for text, end in ((QUESTION, "\n> "), ("/clear", "cleared\n\n\n> ")):
            self.say(text)
            self.until(end)

    def ask(self, picture):
        answer = Answer()
        self.say(f"/image {picture}")
        self.until("loaded\n\n> ")
        self.say(QUESTION)
        self.until(f"{QUESTION}\n\n")  # the second line ends when the prompt is through
        if not self.unread:
            self.more()
        answer.token()
        self.until("\n> ")
        answer.token(self.options.tokens - 1)
        answer.visual = sum(map(int, re.findall(r"decoding image batch .* n_tokens_batch = (\d+)", self.messages())))
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class OpenVino(Engine):
    def __init__(self, options):
        import numpy
        import openvino
        import openvino_genai
        from PIL import Image

        class Streamer(openvino_genai.StreamerBase):
            def __init__(self, answer):
                super().__init__()
                self.answer = answer

            def write(self, tokens):
                self.answer.token(1 if isinstance(tokens, int) else len(tokens))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self):
                pass

        self.streamer, self.read = Streamer, lambda picture: openvino.Tensor(numpy.asarray(Image.open(picture).convert("RGB")))
        self.pipeline = openvino_genai.VLMPipeline(options.model, "CPU", INFERENCE_NUM_THREADS=options.threads, PERFORMANCE_HINT="LATENCY",
                                                   INFERENCE_PRECISION_HINT="bf16")  # fmt: skip
        self.how = openvino_genai.GenerationConfig(max_new_tokens=options.tokens, ignore_eos=True, do_sample=False, pruning_ratio=int(options.prune))
        text = self.pipeline.generate(QUESTION, max_new_tokens=1)
        self.around = text.perf_metrics.get_num_input_tokens() + 2  # a picture's start and end

    def ask(self, picture):
        answer = Answer()
        done = self.pipeline.generate(QUESTION, images=[self.read(picture)], generation_config=self.how, streamer=self.streamer(answer))
        answer.kept = done.perf_metrics.get_num_input_tokens() - self.around  # what pruning left of the prompt
        if not self.how.pruning_ratio:
            answer.visual = answer.kept
        return answer


class Transformers(Engine):
    def __init__(self, options):
        import torch
        from PIL import Image
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        torch.set_num_threads(options.threads)
        self.options, self.open = options, Image.open
        self.processor = AutoProcessor.from_pretrained(options.model)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(options.model, torch_dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def ask(self, picture):
        answer, whole = Answer(), [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]

        class Streamer:
            def put(self, ids):
                if ids.numel() == 1:  # not the prompt, which comes first
                    answer.token()

            def end(self):
                pass

        prompt = self.processor.apply_chat_template(whole, add_generation_prompt=True)
        inputs = self.processor(text=[prompt], images=[self.open(picture).convert("RGB")], return_tensors="pt")
        count = self.options.tokens
        self.model.generate(**inputs, min_new_tokens=count, max_new_tokens=count, do_sample=False, streamer=Streamer())
        answer.visual = int((inputs["input_ids"] == self.model.config.image_token_id).sum())
        return answer


ENGINES = {"glimpse": Glimpse, "llama.cpp": LlamaCpp, "openvino": OpenVino, "transformers": Transformers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--beside")
    parser.add_argument("--mmproj")
    parser.add_argument("--program")
    parser.add_argument("--bits", choices=["auto", "bf16", "int8", "int4"], default="bf16")
    parser.add_argument("--prune")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("pictures", nargs=2, help="one to warm up on, one to time")
    options = parser.parse_args()

    engine = ENGINES[options.engine](options)
    try:
        warm, picture = options.pictures
        engine.warm(warm)
        answer = engine.ask(picture)
        resident = engine.resident()
    finally:
        engine.close()
    rows = [{"name": "first_token_ms", "value": 1e3 * (answer.first - answer.begin), "unit": "ms"},
            {"name": "answer_ms", "value": 1e3 * (answer.last - answer.begin), "unit": "ms"},
            {"name": "resident_mib", "value": resident, "unit": "MiB"},
            {"name": "tokens", "value": answer.tokens, "unit": "tokens"},
            {"name": "visual_tokens", "value": answer.visual, "unit": "tokens"},
            {"name": "kept_tokens", "value": answer.kept or answer.visual, "unit": "tokens"}]  # fmt: skip
    rows = [row for row in rows if row["value"] is not None]  # CDPruner does not tell how many visual tokens there were
    for row in rows:
        print(f"{row['name']:22}{row['value']:12.0f} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
