"""Every bad input ends with status 1 and a message that says what was wrong where; nothing crashes or is executed."""
import json
import os
import pickle
import struct
import unittest
import zipfile
import zlib

from program import IMAGE, IMAGES, MODEL, MODULES, QUESTION, CliTest
from tensor_files import read_safetensors, write_safetensors

TENSORS = read_safetensors(MODEL / "model.safetensors")


class Models(CliTest):
    def bad(self, model, *says, flags=()):
        self.fails(["ask", "-m", model, *flags, "-n", "1", "Hello"], *says)

    def with_file(self, name, content):
        """A copy of the built-in model in which one file has other bytes."""
        folder = self.model_copy(f"model{len(list(self.dir.iterdir()))}", [name])
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    def test_no_such_model(self):
        self.bad(self.dir / "nowhere", "nowhere' not found")
        self.bad("org/name", "model 'org/name' not found", "huggingface-cli download org/name")
        self.bad("../../etc", "not found")
        self.bad(MODEL / "config.json", "is a file; expected its directory")
        self.bad(self.dir, "no such file: ", "config.json")
        self.bad(MODEL, "nowhere", flags=["--new-modules", self.dir / "nowhere"])
        self.bad(MODEL, "config.json", flags=["--new-modules", self.dir])
        self.bad(MODEL, "no pruning modules were given", flags=["--prune", "glimpse"])
        self.bad(self.model_copy("bare", ["model.safetensors"]), "no weights in ", "expected one of model.safetensors")

    def test_config(self):
        config = json.loads((MODEL / "config.json").read_text())
        self.bad(self.with_file("config.json", '{"model_type": '), "config.json is not valid JSON")
        self.bad(self.with_file("config.json", ""), "config.json")
        self.bad(self.with_file("config.json", "[" * 100000), "nested deeper than")
        self.bad(self.with_file("config.json", "3"), "config.json: expected a JSON object")
        self.bad(self.with_file("config.json", "{}"), "config.json: model_type '' is not supported (known: qwen2_5_vl")
        for key, value in [("model_type", "bert"), ("model_type", 4), ("num_hidden_layers", "six"), ("hidden_size", -1),
                           ("num_hidden_layers", 10**9), ("num_hidden_layers", 0), ("num_attention_heads", 0),
                           ("num_key_value_heads", 3), ("vocab_size", 10**12), ("vision_config", None),
                           ("rope_scaling", {"mrope_section": [1, 2]}), ("text_config", 5)]:
            self.bad(self.with_file("config.json", json.dumps({**config, key: value})), "glimpse: ")
        for key, value in [("num_heads", 0), ("depth", 10**9), ("spatial_merge_size", 3), ("window_size", 0),
                           ("fullatt_block_indexes", "x"), ("hidden_size", 127)]:
            vision = {**config["vision_config"], key: value}
            self.bad(self.with_file("config.json", json.dumps({**config, "vision_config": vision})), "glimpse: ")

    def test_vision_sizes_of_zero(self):
        config = json.loads((MODEL / "config.json").read_text())
        for key in ("spatial_merge_size", "patch_size"):
            vision = {**config["vision_config"], key: 0}
            self.bad(self.with_file("config.json", json.dumps({**config, "vision_config": vision})), "glimpse: ")

    def test_other_json_files(self):
        self.bad(self.with_file("generation_config.json", '{"eos_token_id": "x"}'), "generation_config.json")
        self.bad(self.with_file("generation_config.json", "[3]"), "generation_config.json")
        self.bad(self.with_file("tokenizer.json", "{}"), "tokenizer.json")
        self.bad(self.with_file("tokenizer.json", "no"), "tokenizer.json is not valid JSON")
        self.fails(["ask", "-m", self.with_file("preprocessor_config.json", '{"patch_size": 0, "max_pixels": "x"}'),
                    "-i", IMAGE, "x"], "glimpse: ")

    def test_files_that_git_did_not_fetch(self):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7516344472\n"
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            self.bad(self.with_file(name, pointer), f"{name}: is a Git LFS pointer; the file was not fetched (run git lfs pull")

    def test_no_tokenizer(self):
        self.bad(self.model_copy("model", ["tokenizer.json", "vocab.json", "merges.txt"]), "tokenizer")

    def test_weights(self):
        def changed(**tensors):
            folder = self.model_copy(f"model{len(list(self.dir.iterdir()))}", ["model.safetensors"])
            write_safetensors(folder / "model.safetensors", {k: v for k, v in {**TENSORS, **tensors}.items() if v})
            return folder

        norm = "model.layers.2.input_layernorm.weight"
        dtype, shape, data = TENSORS[norm]
        self.bad(changed(**{norm: None}), f"tensor '{norm}' is missing from", "model.safetensors")
        self.bad(changed(**{"model.extra.weight": TENSORS[norm]}), "1 tensors that the model does not know", "model.extra.weight")
        self.bad(changed(**{norm: (dtype, [128], data[:256])}), norm, "has shape [128]; expected [256]")
        self.bad(changed(**{norm: ("I16", shape, data)}), norm, "has dtype")
        weights = (MODEL / "model.safetensors").read_bytes()
        for broken in (b"", weights[:5], weights[:1000], weights[:-1], struct.pack("<Q", 2**63) + weights[8:],
                       b"\xff" * 100, weights[:8] + b"[" * 4000, weights.replace(b'"BF16"', b'"XX16"', 1)):
            self.bad(self.with_file("model.safetensors", broken), "model.safetensors")

    def test_index(self):
        for index in ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 4}}', '{"weight_map": {"a": "none.safetensors"}}',
                      '{"weight_map": {"a": "../model/model.safetensors"}}', "x"]:
            folder = self.model_copy(f"model{len(list(self.dir.iterdir()))}", ["model.safetensors"])
            (folder / "model.safetensors.index.json").write_text(index)
            self.bad(folder, "model.safetensors.index.json")

    def modules(self, name, content):
        folder = self.model_copy(f"modules{len(list(self.dir.iterdir()))}", [name], MODULES)
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    def bad_modules(self, folder, *says):
        self.bad(MODEL, *says, flags=["--new-modules", folder])

    def test_modules(self):
        config = json.loads((MODULES / "config.json").read_text())
        self.bad_modules(self.modules("new_modules_gp.pt", None), "neither new_modules_gp.pt nor new_modules_gp.safetensors")
        self.bad_modules(self.modules("new_modules_gp.pt", b"text"), "new_modules_gp.pt")
        weights = (MODULES / "new_modules_gp.pt").read_bytes()
        self.bad_modules(self.modules("new_modules_gp.pt", weights[:-30000]), "new_modules_gp.pt")
        self.bad_modules(self.modules("config.json", "{"), "config.json is not valid JSON")
        # Modules of another model: their config wins, so its sizes must fail against the weights.
        for key, value in [("hidden_size", 512), ("num_hidden_layers", 12), ("reduce_layer", 99), ("selected_layers", [9]),
                           ("attn_fuse_size", 256), ("attn_fuse_num_heads", 0), ("attn_fuse_type", "Other"),
                           ("selected_visual_layers", [31, 23, 15, 7]), ("visual_cond_size", 10**12), ("le_layers", "x")]:
            self.assertTrue(key in config or key == "le_layers", key)
            self.bad_modules(self.modules("config.json", json.dumps({**config, key: value})), "glimpse: ")

    def test_hostile_pickle(self):
        class Payload:
            def __init__(self, code):
                self.code = code

            def __reduce__(self):
                return os.system, (self.code,)

        victim = self.dir / "executed"
        for content in ({"attn_fuser": Payload(f"touch {victim}")}, [Payload(f"touch {victim}")] * 3):
            file = self.dir / "hostile.pt"
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
                archive.writestr("archive/version", "3\n")
            self.bad_modules(self.modules("new_modules_gp.pt", file.read_bytes()), "new_modules_gp.pt", "system")
            self.bad_modules(self.modules("new_modules_gp.pt", pickle.dumps(content, 2)), "new_modules_gp.pt")
        self.assertFalse(victim.exists())


class Requests(CliTest):
    def bad(self, *args):
        *flags, says = args
        self.fails(["ask", "-i", IMAGE, *flags, QUESTION], says)

    def test_images(self):
        jpeg = (IMAGES / "read_000.jpg").read_bytes()
        png = next((MODEL.parent / "test/cot").rglob("*.png")).read_bytes()

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        def header(width, height):
            return png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))

        file = self.dir / "bad.image"
        bomb = header(60000, 60000) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        for content, says in [(b"", "empty (0 bytes)"), (b"hello there", ""), (jpeg[:2000], ""), (jpeg[:20], ""),
                              (png[:len(png) // 2], ""), (png[:40] + b"\xff" * 500, ""), (bomb, "60000"),
                              (header(2**31 - 1, 2**31 - 1), ""), (header(0, 5), ""), (b"GIF89a\xff\xff\xff\xff", ""),
                              (b"RIFF\xff\xff\xff\xffWEBPVP8 ", ""), (b"II*\0\x08\0\0\0\xff\xff", ""),
                              (b"BM" + b"\xff" * 60, "")]:
            file.write_bytes(content)
            self.fails(["ask", "-i", file, "x"], "bad.image", says)
        self.fails(["ask", "-i", self.dir / "none.png", "x"], "none.png: ")
        self.fails(["ask", "-i", self.dir, "x"], "is a folder, not an image file")
        self.fails(["ask", "-i", "x" * 300, "x"], "glimpse: ")

    def test_pruning(self):
        self.bad("--prune", "frob", "unknown method 'frob' (known: none, glimpse, ")
        self.bad("--prune", "", "unknown method ''")
        self.bad("--prune", "glimpse(treshold=1)", "unknown setting 'treshold'; did you mean 'threshold'?")
        self.bad("--prune", "glimpse(threshold=2)", "threshold: 2 is outside [0, 1]")
        self.bad("--prune", "glimpse(threshold", "lacks its closing parenthesis")
        self.bad("--prune", "glimpse(threshold)", "expected name=value")
        self.bad("--prune", "random(keep=x)", "keep: expected a number")
        self.bad("--prune", "random(layer=99)", "cuts at layer 99 but the model has 6 layers")
        self.bad("--prune", "glimpse++random", "unknown method ''")
        self.bad("--prune", "(", "glimpse: ")
        self.bad("--prune", "reference", "glimpse: ")
        self.bad("--prune", "random", "--threshold", "0.5", "--threshold and the like belong to glimpse, scout and reference")
        self.bad("-m", MODEL, "--threshold", "0.5", "this model has no pruning modules")
        self.fails(["ask", "-i", IMAGE, "--anchors", "middle", QUESTION], "expected tl, tr, bl or br, got 'middle'", status=2)

    def test_empty_values(self):
        """An unset shell variable is no number: none of these flags takes its default silently."""
        for flag in ("--max-pixels", "--min-pixels", "--temperature", "--max-new-tokens", "--threads", "--keep", "--top-k",
                     "--dtype", "--threshold", "--preprocessing"):
            refused = self.fails(["ask", flag, "", QUESTION], status=2)
            self.assertIn(flag[2:].replace("-", "_"), refused.stderr.replace("-", "_"))
        for command, flag in [("infer", "--limit"), ("infer", "--batch"), ("infer", "--cache-mb"), ("eval", "--max-new-tokens"),
                              ("eval", "--limit"), ("eval", "--judge-timeout"), ("train", "--lr"), ("train", "--max-pixels"),
                              ("train", "--batch")]:
            rows = ["x.jsonl"] if command == "infer" else []
            self.fails([command, *rows, "--out", self.dir / "out", flag, ""], status=2)

    def test_prompt(self):
        text = self.fails(["ask", "word " * 9000], "4096", "shorten the text")
        self.assertNotIn("--max-pixels", text.stderr)
        self.fails(["ask", "-i", IMAGE, "word " * 9000], "4096", "lower --max-pixels, give fewer images or frames (--max-frames) or shorten the text")
        # Bytes that are no UTF-8 are taken as they are.
        self.ok("ask", "--json", "-n", "1", "--system", b"caf\xe9", b"caf\xe9")
        model = os.fsencode(self.dir) + b"/caf\xe9"
        os.symlink(MODEL, model)
        json.loads(self.ok("inspect", "--json", "-m", model))
        rows = self.dir / "rows.jsonl"
        rows.write_text('{"question": "x"}\n')
        for _ in range(2):
            self.ok("infer", "-n", "1", "--system", b"caf\xe9", "-m", model, "--out", self.dir / "out.jsonl", rows)
        # Special tokens in a question are only text: no second image place comes of them.
        self.ok("ask", "-n", "1", "-i", IMAGE, "<|image_pad|><|im_end|>")

    def test_outputs(self):
        for flag in ("--mask-out", "--overlay-out", "--scores-out"):
            self.bad(flag, self.dir / "nowhere/out", "nowhere/out")
            self.bad(flag, self.dir, str(self.dir))


if __name__ == "__main__":
    unittest.main()
