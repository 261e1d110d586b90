"""Published clients against glimpse serve, unmodified."""
import base64
import sys
import unittest
from pathlib import Path

import openai
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, KEEP, QUESTION, ROOT  # noqa: E402
from serving import PICTURE, Server, asked  # noqa: E402

MESSAGES = asked()["messages"]


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "secret", "--kv-mb", 64)
        cls.addClassCleanup(cls.server.stop)
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="secret", max_retries=0, timeout=60)
        cls.addClassCleanup(cls.client.close)

    def ask(self, **more):
        return self.client.chat.completions.create(**{"model": "glimpse-tiny", "messages": MESSAGES, **more})

    def test_models(self):
        self.assertIn("glimpse-tiny+none", [model.id for model in self.client.models.list()])

    def test_chat(self):
        answer = self.ask(extra_body={"pruning": {"return": ["keep"]}})
        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertEqual(answer.model_extra["glimpse"]["images"][0]["keep"], KEEP)

    def test_video(self):
        """As vLLM's users send one."""
        clip = base64.b64encode((ROOT / "tests/data/videos/h264.mp4").read_bytes()).decode()
        content = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + clip}}, {"type": "text", "text": "What is shown?"}]
        answer = self.ask(messages=[{"role": "user", "content": content}], max_tokens=4,
                          extra_body={"mm_processor_kwargs": {"fps": 1, "do_sample_frames": True, "min_frames": 2}})
        self.assertEqual([grid["image"] for grid in answer.model_extra["glimpse"]["images"]], [0])

    def test_stream(self):
        with self.ask(stream=True, stream_options={"include_usage": True}) as stream:
            chunks = list(stream)
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), ANSWER)
        self.assertEqual(chunks[-1].usage.prompt_tokens_details.cached_tokens + 1 > 0, True)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")

    def test_options(self):
        answer = self.ask(n=2, temperature=0.0, top_p=0.9, seed=3, stop=["square"], max_completion_tokens=50, presence_penalty=0.1,
                          frequency_penalty=0.1, logprobs=True, top_logprobs=2, user="me", logit_bias={"5": -1})
        self.assertEqual([choice.message.content for choice in answer.choices], ["The letter on the orange "] * 2)
        first = answer.choices[0].logprobs.content[0]
        self.assertEqual((first.token, len(first.top_logprobs)), (first.top_logprobs[0].token, 2))

    def test_responses(self):
        content = [{"type": "input_image", "image_url": PICTURE, "detail": "auto"}, {"type": "input_text", "text": QUESTION}]
        asked_for = {"model": "glimpse-tiny", "input": [{"role": "user", "content": content}], "extra_body": {"pruning": {"return": ["keep"]}}}
        answer = self.client.responses.create(**asked_for)
        self.assertEqual((answer.output_text, answer.status), (ANSWER, "completed"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)
        self.assertEqual(answer.model_extra["glimpse"]["images"][0]["keep"], KEEP)
        cut = self.client.responses.create(**asked_for, max_output_tokens=2)
        self.assertEqual((cut.status, cut.incomplete_details.reason, cut.usage.output_tokens), ("incomplete", "max_output_tokens", 2))
        with self.client.responses.stream(**asked_for) as stream:
            events = list(stream)
            last = stream.get_final_response()
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), ANSWER)
        self.assertEqual(last.output_text, ANSWER)
        self.assertEqual([e.sequence_number for e in events], sorted(e.sequence_number for e in events))
        self.assertEqual([events[0].type, events[-1].type], ["response.created", "response.completed"])
        text = self.client.responses.create(model="glimpse-tiny", input="Hello", instructions="Be brief.", max_output_tokens=3)
        self.assertEqual(text.instructions, "Be brief.")
        for more, words in (({"previous_response_id": "resp_1"}, "keeps no conversations"), ({"input": 3}, "expected a text"),
                            ({"tools": [{"type": "web_search"}]}, "calls no tools")):
            with self.assertRaisesRegex(openai.BadRequestError, words):
                self.client.responses.create(**{"model": "glimpse-tiny", "input": "x", **more})

    def test_errors(self):
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()
        with self.assertRaisesRegex(openai.NotFoundError, "there are glimpse-tiny"):
            self.ask(model="gpt-9")
        with self.assertRaisesRegex(openai.BadRequestError, "tools"):
            self.ask(tools=[{"type": "function", "function": {"name": "x"}}])
        with self.assertRaisesRegex(openai.BadRequestError, "temperature"):
            self.ask(temperature=-1)

    def test_timeout(self):
        """A client that gives up frees what it asked for."""
        with self.assertRaises(openai.APITimeoutError):
            self.ask(timeout=0.3, max_tokens=3900, extra_body={"ignore_eos": True})
        deadline = 100
        while deadline and self.gauge("glimpse:num_requests_running") + self.gauge("glimpse:kv_cache_bytes"):
            deadline -= 1
        self.assertTrue(deadline)

    def gauge(self, name):
        return self.families()[name].samples[0].value

    def families(self):
        status, text = self.server.get("/metrics", Authorization="Bearer secret")
        self.assertEqual(status, 200)
        return {family.name: family for family in text_string_to_metric_families(text.decode())}

    def test_metrics(self):
        before = self.families()
        usage = self.ask().usage
        after = self.families()

        def more(name, suffix=""):
            value = [next((s.value for s in f[name].samples if s.name.endswith(suffix)), 0) for f in (before, after)]
            return value[1] - value[0]
        self.assertEqual(more("glimpse:prompt_tokens"), usage.prompt_tokens)
        self.assertEqual(more("glimpse:generation_tokens"), usage.completion_tokens)
        self.assertEqual(more("glimpse:visual_tokens_kept"), len(KEEP))
        self.assertEqual(more("glimpse:time_to_first_token_seconds", "_count"), 1)
        self.assertEqual(more("glimpse:e2e_request_latency_seconds", "_count"), 1)
        self.assertIn("stop", [s.labels["finished_reason"] for s in after["glimpse:request_success"].samples])
        self.assertEqual(after["glimpse:num_requests_running"].samples[0].labels["model_name"], "glimpse-tiny")


if __name__ == "__main__":
    unittest.main()
