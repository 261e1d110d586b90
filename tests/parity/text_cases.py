"""Writes token ids as transformers gives them: text_cases.py OUTPUT.json MODEL_FOLDER [ASSETS_FOLDER]

For each tokenizer (ASSETS_FOLDER is what fetch_vocab.py makes): texts with their ids, decoded ids, and conversations with
their prompt and ids. The file is read by text_parity_test.cpp.
"""

import json
import os
import pathlib
import random
import sys
import unicodedata

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoTokenizer, CLIPTokenizer, CLIPTokenizerFast  # noqa: E402

CLIP = pathlib.Path(__file__).resolve().parents[1] / "data/golden/methods/clip_full_112"

# What the published template does for text and images, written anew.
TEMPLATE = (
    "{%- if messages and messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")

# The same for llava-hf's template, and for the original code's conversation vicuna_v1.
LLAVA_HF = (
    "{%- for message in messages -%}"
    "{%- if message.role != 'system' -%}{{ message.role | upper + ': ' }}{%- endif -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text + ' ' }}{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}")
VICUNA = (
    "{%- if messages[0].role != 'system' -%}{{ \"A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. \" }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role != 'system' -%}{{ message.role | upper + ': ' }}{%- endif -%}"
    "{%- for part in message.content -%}{{ '<image>\\n' if part.type == 'image' else part.text }}{%- endfor -%}"
    "{{ '</s>' if message.role == 'assistant' else ' ' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}")
# LLaVA-NeXT's: the original llava_v1 and mistral_instruct (LLaMA 2's style), and the same instructions in llava-hf's way.
LLAVA_V1 = VICUNA.replace("curious user", "curious human").replace("the user's", "the human's")
MISTRAL_HF = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ '<<SYS>>\\n' }}{%- elif message.role == 'user' -%}{{ '[INST] ' }}{%- else -%}{{ ' ' }}{%- endif -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{%- if message.role == 'system' -%}{{ '\\n<</SYS>>\\n\\n' }}{%- elif message.role == 'user' -%}{{ ' [/INST]' }}{%- else -%}{{ '</s>' }}{%- endif -%}"
    "{%- endfor -%}")
MISTRAL = (
    "{%- set held = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set held.text = '<<SYS>>\\n' -%}"
    "{%- for part in message.content -%}{%- set held.text = held.text + part.text -%}{%- endfor -%}"
    "{%- set held.text = held.text + '\\n<</SYS>>\\n\\n' -%}"
    "{%- else -%}"
    "{%- if message.role == 'user' -%}{{ '[INST] ' + held.text }}{%- set held.text = '' -%}{%- else -%}{{ ' ' }}{%- endif -%}"
    "{%- for part in message.content -%}{{ '<image>\\n' if part.type == 'image' else part.text }}{%- endfor -%}"
    "{{ ' [/INST]' if message.role == 'user' else ' </s>' }}"
    "{%- endif -%}{%- endfor -%}")
ORIGINAL = {"vicuna": VICUNA, "llava_v1": LLAVA_V1, "mistral": MISTRAL}

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\n  x", "x \n\n y", "a   b", "   a", "a   ", "\u00a0x", "\u3000",
    "\u180e\u180e x\u180ey", "  \u180e", "a   \u180e \nb", "a\u2028b\u0085c\u200bd", "x\x00y", "\x1c \x1f", "\ufeffx",
    "What colour is the shape with the letter K?", "What colour is the shape with the letter K?\n"
    "Answer the question using a single word or phrase.", "I'm you're HE'S we'LL they'D I'Ve don'T ma'am 'tis o'clock 'ſ 's's",
    "0", "00", "12345678901234567890", "3.14159, 1e-10, 1,000,000", "x2y3", "½ ² Ⅷ ٣٤٥ 五百 ௧௨", "v1.2.3-rc4",
    "C++ #include <vector>\n\tint main() { return 0; }\n", "a_b-c/d\\e|f~g`h", "!!!???...---", "x!!!\n\n\ny", "…—–“”‘’«»",
    "Übergrößenträger, naïve café, ŝanĝo, żółć", unicodedata.normalize("NFD", "Übergrößenträger naïve café żółć Ấn"),
    "e\u0301\u0327 e\u0327\u0301 q\u0323\u0307 q\u0307\u0323", "\u0301leading", "\u1100\u1161\u11a8 \uac00\u11a8", "Å Å Ω Ω",
    "\u0958 \u0915\u093c \ufb1d \u2adc \U0001d15e", "ﬁ ﬃ ﷺ", "нещо на Български", "Ελληνικά", "中文字符，繁體中文。", "日本語テキスト ｶﾀｶﾅ",
    "한국어 문장", "العَرَبِيَّة", "עִבְרִית", "हिन्दी में", "ภาษาไทย", "မြန်မာ ខ្មែរ", "Tiếng Việt", "ქართული Հայերեն", "ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ",
    "🙂", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👍🏽", "text🦙.cpp", "❤️ ☎ ♟️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠀁", "\U00031350 \U0010ffff \ufffd \ufffe \ue000",
    "Z͑ͫ̓a̴̛l̵͘g̶o", "<|im_end|>", "<|im_start|>user\nhi<|im_end|>\n", "a<|image_pad|><|image_pad|>b", "<|im_end|", "<|im_end|>|>",
    "<<|im_end|>>", " <|endoftext|> ", "x  <|vision_start|>  y", "e<|im_end|>\u0301", "<|IM_END|>", "<tool_call>", "<|box_start|>(1,2)<|box_end|>",
    "a" * 3000, " " * 3000 + "x", "\n" * 1000, "ab" * 2000, "🙂" * 500, "é" * 1000, "\u0301" * 500, "." * 1000, "1" * 1000,
]

SINGLE = [[("user", [""])], [("user", ["What number is on the red circle?"])], [("system", ["Be brief."]), ("user", ["hi"])],
          [("system", []), ("user", ["hi"])], [("user", ["  leading", " and ", "\ntrailing \n"])],
          [("user", ["e"]), ("assistant", ["e\u0301"])], [("system", ["only"])]]


def random_texts(source: random.Random) -> list[str]:
    alphabets = [
        "abcdefghijklmnopqrstuvwxyzABCDEF '", " \t\n\r\u00a0\u2003\u0085ab.", "0123456789.,xX ½", "'sStTrRvVeEmMlLdD’ ",
        "aeou\u0301\u0308\u0323\u0327\u0345\u05b0\u3099かが", "".join(map(chr, range(0x20, 0x250))), "<|im_endstart>|user \n",
        "🙂👩\u200d\ufe0f🏽🇩🇪 x"]
    texts = ["".join(source.choices(alphabet, k=source.randint(1, 60))) for alphabet in alphabets for _ in range(40)]
    # Assigned characters only: Unicode versions differ on the others.
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    texts += ["".join(source.choices(assigned, k=source.randint(1, 40))) for _ in range(400)]
    texts += ["".join(source.choice(assigned) + source.choice(["", " ", "a", "1", "\n", "."]) for _ in range(30)) for _ in range(200)]
    return texts


def conversations(source: random.Random) -> list[list[tuple[str, list]]]:
    out = list(SINGLE)
    words = ["Look:", " ", "What is it?", "\n", "naïve e\u0301", "🙂", "  x", "42", "<b>", "don't"]
    for images in range(4):
        for _ in range(6):
            talk = [("system", [source.choice(words)])] if source.random() < 0.3 else []
            for turn in range(source.randint(1, 4)):
                parts = [source.choice(words) for _ in range(source.randint(0, 3))]
                if turn == 0:
                    for _ in range(images):
                        parts.insert(source.randint(0, len(parts)), None)
                talk.append((["user", "assistant"][turn % 2], parts))
            out.append(talk)
    return out


def as_messages(talk: list) -> list[dict]:
    return [{"role": role, "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]}
            for role, parts in talk]


def qwen_chats(tokenizer, talk: list):
    messages = as_messages(talk)
    for generation in (False, True):
        options = dict(chat_template=TEMPLATE, add_generation_prompt=generation)
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        if tokenizer.chat_template:
            own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            assert own == prompt, (own, prompt)
        yield {"format": "qwen", "generation": generation, "prompt": prompt,
               "ids": tokenizer.apply_chat_template(messages, **options)}


def llava_chats(tokenizer, talk: list):
    messages = as_messages(talk)
    for generation in (False, True):
        for name, template in {"llava_hf": LLAVA_HF, "mistral_hf": MISTRAL_HF, **ORIGINAL}.items():
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, add_generation_prompt=generation)
            ids = tokenizer.encode(prompt, add_special_tokens=False)
            if name in ORIGINAL:  # the original code encodes the parts between images one by one and joins them with this number
                ids = [i for part in prompt.split("<image>") for i in [-200, *tokenizer.encode(part, add_special_tokens=False)]][1:]
            yield {"format": name, "generation": generation, "prompt": prompt, "ids": ids}


def cases(folder: pathlib.Path, chats, twins: list[pathlib.Path] = []) -> dict:
    """What must come out of the tokenizer in `folder` and, as far as no ids of added tokens occur, of its `twins`."""
    source = random.Random(7)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = TEXTS + random_texts(source)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    runs = [source.choices(range(len(tokenizer)), k=source.randint(1, 30)) for _ in range(200)]
    return {
        "folder": str(folder.resolve()), "twins": [str(twin.resolve()) for twin in twins], "size": len(tokenizer),
        "texts": [{"text": text, "ids": i} for text, i in zip(texts, ids)],
        "decoded": [{"ids": run, "text": tokenizer.decode(run), "shown": tokenizer.decode(run, skip_special_tokens=True)}
                    for run in runs + ids[:60]],
        "chats": [{"messages": [[role, parts] for role, parts in talk], **chat}
                  for talk in conversations(source) for chat in chats(tokenizer, talk)],
    }


def clip_cases(json_folder: pathlib.Path) -> dict:
    """CLIP's: from vocab.json and merges.txt, and as a tokenizer.json, which goes to `json_folder`."""
    tokenizer, older = CLIPTokenizerFast.from_pretrained(CLIP), CLIPTokenizer.from_pretrained(CLIP)
    tokenizer.save_pretrained(json_folder)
    for name in ("vocab.json", "merges.txt"):
        (json_folder / name).unlink()
    texts = TEXTS + ["<|ENDOFTEXT|>x", "a<|startoftext|>b", "ΣΑΣ ΟΔΟΣ ΑΣ", "İstanbul ǅ ẞ", "IT'S HE'LL'VE", "the</w>"] + random_texts(random.Random(7))
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for text, expected in zip(texts, ids):  # the tokenizer in Python, without ftfy, reads other scripts in another way
        if text.isascii() and all(c.isprintable() or c in "\t\r\n" for c in text):
            assert older.encode(text, add_special_tokens=False) == expected, text
    return {"folder": str(CLIP), "twins": [str(json_folder.resolve())], "size": len(tokenizer),
            "texts": [{"text": text, "ids": i} for text, i in zip(texts, ids)], "decoded": [], "chats": []}


def main(output: str, model: str, assets: str | None = None) -> None:
    sets = [cases(pathlib.Path(model), qwen_chats)]
    if assets:
        folder = pathlib.Path(assets)
        sets += [cases(folder / "qwen2_vocab", qwen_chats), cases(folder / "llama_metaspace", llava_chats),
                 cases(folder / "llama_prepend", llava_chats, [folder / "llama_sentencepiece"])]
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    sets.append(clip_cases(pathlib.Path(output).parent / "clip_json"))
    # json's own escapes cannot carry lone surrogates, which no text here has.
    pathlib.Path(output).write_text(json.dumps(sets), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
