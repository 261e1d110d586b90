"""Makes the real 151k vocabulary of Qwen2 for the tests: fetch_vocab.py OUTPUT_FOLDER

llama-cpp-python's source package carries it as a GGUF file, with texts and their expected token ids. The output folder
gets vocab.json, merges.txt and tokenizer_config.json (with the special tokens of Qwen2.5-VL), and the texts and ids as
vectors.inp and vectors.out. A finished folder is left as it is. Needs pip and the `gguf` package.
"""

import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
MEMBER = "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf"
FIRST_SPECIAL = 151643
SPECIAL = [f"<|{name}|>" for name in (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
    "vision_start vision_end vision_pad image_pad video_pad").split()]
FILES = ["vocab.json", "merges.txt", "tokenizer_config.json", "vectors.inp", "vectors.out"]


def download(folder: pathlib.Path) -> None:
    """Takes the three files out of the source package, which is neither built nor installed."""
    # --no-binary for this package alone: pip reads the metadata through the build backend, which it may take as a wheel.
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--no-binary", PACKAGE, "--dest", folder, f"{PACKAGE}=={VERSION}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        root = tar.next().name.split("/")[0]
        for suffix in ("", ".inp", ".out"):
            (folder / f"vocab.gguf{suffix}").write_bytes(tar.extractfile(f"{root}/{MEMBER}{suffix}").read())


def convert(folder: pathlib.Path) -> None:
    import gguf

    fields = gguf.GGUFReader(folder / "vocab.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:FIRST_SPECIAL]
    merges = fields["tokenizer.ggml.merges"].contents()
    added = {FIRST_SPECIAL + i: {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                 "single_word": False, "special": True} for i, token in enumerate(SPECIAL)}
    config = {"add_prefix_space": False, "added_tokens_decoder": added, "additional_special_tokens": SPECIAL[1:],
              "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
              "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8", newline="\n")
    write("vocab.json", json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    write("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write("tokenizer_config.json", json.dumps(config, indent=1))
    (folder / "vocab.gguf.inp").rename(folder / "vectors.inp")
    (folder / "vocab.gguf.out").rename(folder / "vectors.out")


def main(output: pathlib.Path) -> None:
    if all((output / name).is_file() for name in FILES):
        return
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        download(folder)
        convert(folder)
        for name in FILES:
            part = output / f"{name}.part"
            part.write_bytes((folder / name).read_bytes())
            part.replace(output / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
