"""Makes the real vocabularies of Qwen2 and LLaMA for the tests: fetch_vocab.py OUTPUT_FOLDER

llama-cpp-python's source package carries them as GGUF files, with texts and their expected token ids. The output folder
gets, with the texts and ids as vectors.inp and vectors.out:
  qwen2_vocab/      vocab.json, merges.txt and tokenizer_config.json with the special tokens of Qwen2.5-VL
  llama_sentencepiece/   tokenizer.model
  llama_prepend/    the same vocabulary as tokenizer.json with the special tokens of llava-hf, a space before every text
  llama_metaspace/  the same in the newer form, a space before the first text only and never two
Finished folders are left as they are. Needs pip and the packages `gguf` and `tokenizers`.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
MEMBER = "vendor/llama.cpp/models/ggml-vocab-{}.gguf"
FIRST_SPECIAL = 151643
SPECIAL = [f"<|{name}|>" for name in (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
    "vision_start vision_end vision_pad image_pad video_pad").split()]
SPACE = "\u2581"


def download(folder: pathlib.Path) -> None:
    """Takes the files out of the source package, which is neither built nor installed."""
    # --no-binary for this package alone: pip reads the metadata through the build backend, which it may take as a wheel.
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--no-binary", PACKAGE, "--dest", folder, f"{PACKAGE}=={VERSION}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        root = tar.next().name.split("/")[0]
        for name in ("qwen2", "llama-spm"):
            for suffix in ("", ".inp", ".out"):
                (folder / f"{name}{suffix}").write_bytes(tar.extractfile(f"{root}/{MEMBER.format(name)}{suffix}").read())


def contents(file: pathlib.Path, *names: str) -> list:
    import gguf

    fields = gguf.GGUFReader(file).fields
    return [fields[f"tokenizer.ggml.{name}"].contents() for name in names]


def write(file: pathlib.Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def added(token: str) -> dict:
    return {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def write_qwen2(gguf_file: pathlib.Path, folder: pathlib.Path) -> None:
    tokens, merges = contents(gguf_file, "tokens", "merges")
    config = {"add_prefix_space": False, "added_tokens_decoder": {FIRST_SPECIAL + i: added(t) for i, t in enumerate(SPECIAL)},
              "additional_special_tokens": SPECIAL[1:], "bos_token": None, "clean_up_tokenization_spaces": False,
              "eos_token": "<|im_end|>", "errors": "replace", "pad_token": "<|endoftext|>",
              "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    write(folder / "vocab.json", json.dumps({token: i for i, token in enumerate(tokens[:FIRST_SPECIAL])}, ensure_ascii=False))
    write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write(folder / "tokenizer_config.json", json.dumps(config, indent=1))


def field(number: int, value) -> bytes:
    """One field of a protobuf message: a message or text, a float, or a small whole number."""
    def varint(n: int) -> bytes:
        out = bytearray()
        n &= (1 << 64) - 1
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        return bytes([*out, n])

    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model(tokens: list[str], scores: list[float], types: list[int]) -> bytes:
    """A SentencePiece ModelProto as LLaMA's: byte fallback, no normalisation, spaces kept. GGUF numbers the types alike."""
    pieces = (field(1, t.encode()) + field(2, float(s)) + field(3, k) for t, s, k in zip(tokens, scores, types))
    trainer = field(3, 2) + field(4, len(tokens)) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return b"".join(field(1, piece) for piece in pieces) + field(2, trainer) + field(3, normalizer)


def llama_merges(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, by the token's score, of equal ones the longer parts first."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in list(zip(tokens, scores))[259:]:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(score, len(left), len(right), left, right) for left, right in pairs if left in ids and right in ids]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge[3:] for merge in merges]


def llama_json(tokens: list[str], scores: list[float], prepend: bool):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocab=ids, merges=llama_merges(tokens, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def write_llama(gguf_file: pathlib.Path, folder: pathlib.Path) -> None:
    tokens, scores, types = contents(gguf_file, "tokens", "scores", "token_type")
    if folder.name == "llama_sentencepiece":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(tokens, scores, types))
        return
    llama_json(tokens, scores, folder.name == "llama_prepend").save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
              "clean_up_tokenization_spaces": False, "legacy": False, "tokenizer_class": "LlamaTokenizer"}
    write(folder / "tokenizer_config.json", json.dumps(config, indent=1))


FOLDERS = {"qwen2_vocab": ("qwen2", write_qwen2), "llama_sentencepiece": ("llama-spm", write_llama),
           "llama_prepend": ("llama-spm", write_llama), "llama_metaspace": ("llama-spm", write_llama)}


def main(output: pathlib.Path) -> None:
    missing = [name for name in FOLDERS if not (output / name / "vectors.out").is_file()]
    if not missing:
        return
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = pathlib.Path(temporary)
        download(source)
        for name in missing:
            gguf_name, make = FOLDERS[name]
            folder = output / name
            folder.mkdir(exist_ok=True)
            make(source / gguf_name, folder)
            # Last, so that a folder that has them is finished.
            (folder / "vectors.inp").write_bytes((source / f"{gguf_name}.inp").read_bytes())
            part = folder / "vectors.out.part"
            part.write_bytes((source / f"{gguf_name}.out").read_bytes())
            part.replace(folder / "vectors.out")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
