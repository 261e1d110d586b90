"""What `glimpse inspect` says beforehand of memory, beside what the program takes then."""
import json
import os
import subprocess
import unittest

from program import MODEL, PROGRAM, CliTest, write_large_png
from sized_model import write_sized_model

MIB = 1 << 20


class Memory(CliTest):
    def peak(self, lines, *flags):
        """Most bytes that a conversation of these lines had in memory."""
        command = [PROGRAM, "chat", "-t", "1", "--cache-mb", "0", "-n", "2", *map(str, flags)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, text=True)
        process.stdin.write("".join(f"{line}\n" for line in lines))
        process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        return used.ru_maxrss * 1024

    def test_told_and_taken(self):
        """What is taken lies from 70 to 105 % of what is told, beside the program itself with the built-in model."""
        (self.dir / "model").mkdir()
        model = write_sized_model(self.dir / "model")
        program = self.peak(["Hello"]) - 16 * MIB  # without that model
        image = self.dir / "image.png"
        write_large_png(image, 1032)  # 37 x 37 tokens
        for weights in ("auto", "int8"):
            memory = json.loads(self.ok("inspect", "--json", "-m", model, "--weights", weights))["memory"]
            self.assertEqual(memory["image"]["visual_tokens"], 1337)
            told = memory["loaded_bytes"] + 37 * 37 / 1337 * memory["image"]["bytes"]
            # The second image comes to a model whose weights are all in memory.
            taken = self.peak([f"/image {image}", "Hello", "/clear", f"/image {image}", "Hello"], "-m", model, "--weights", weights) - program
            with self.subTest(weights=weights, MiB=(taken // MIB, int(told) // MIB)):
                self.assertGreater(taken, 0.7 * told)
                self.assertLess(taken, 1.05 * told)

    def test_inspect(self):
        text = self.ok("inspect")
        for part in ("10.5 MiB of weights (--weights auto), 3.0 KiB of KV cache per token", "1023 x 1023 pixels: 1337 visual tokens, 3.9 MiB of KV cache",
                     "GiB available: room for one image of 256 visual tokens, 448 x 448 pixels (the checkpoint's max_pixels)"):
            self.assertIn(part, text)
        model = self.dir / "model"
        model.mkdir()
        for file in MODEL.iterdir():
            if file.name != "preprocessor_config.json":
                (model / file.name).symlink_to(file)
        (model / "preprocessor_config.json").write_text('{"max_pixels": 16777216}')
        self.assertIn("room for one image of 4096 visual tokens, 1792 x 1792 pixels (as many as the context holds)", self.ok("inspect", "-m", model))
        int8 = json.loads(self.ok("inspect", "--json", "--kv", "int8", "--weights", "int8"))["memory"]
        self.assertEqual(int8["kv_bytes_per_token"], 3 * 1024 * 34 // 64)
        self.assertLess(int8["weights_bytes"], 6.5e6)

    def test_too_large(self):
        """Refused with its numbers before it is loaded, but for who wants it."""
        (self.dir / "model").mkdir()
        wide = {"vocab_size": 8_000_000, "hidden_size": 65536, "num_attention_heads": 512, "num_hidden_layers": 1}  # a thousand gigabytes
        model = write_sized_model(self.dir / "model", wide, {"out_hidden_size": 65536})
        says = ("does not fit into memory: its weights take", "GiB are available", "--no-memory-check", "--weights int8")
        self.fails(["ask", "-m", model, "x"], *says)
        result = self.fails(["inspect", "-m", model], *says)
        self.assertIn("GiB available: too little for it", result.stdout)
        # Mapped, it is not read before it is used.
        self.assertIn("too little for it", self.ok("inspect", "-m", model, "--no-memory-check"))
        self.ok("inspect", "-m", model, env={"GLIMPSE_MEMORY_CHECK": "0"})


if __name__ == "__main__":
    unittest.main()
