"""A tour in cells, for an editor or a notebook that knows `# %%`; it also runs from end to end."""
# %% One question about one picture, by the built-in model.
import asyncio
import sys
from pathlib import Path

import glimpse

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "models/tiny/test/cot")
picture, question = folder / "read" / "read_000.jpg", "What letter is on the orange square?"
answer = glimpse.ask(picture, question)
print(answer, f"({answer.kept_tokens} of {answer.visual_tokens} visual tokens kept)")

# %% What was kept: indices and scores as arrays, and a picture. In a notebook `answer` shows itself.
grid = answer.images[0]
print("kept at rows", grid.keep // grid.cols, "and columns", grid.keep % grid.cols, "likeliest", f"{grid.scores.max():.3f}")
print("overlay", answer.overlay().size)

# %% An engine of one's own: other models and modules, weights of 8 or 4 bits, pictures remembered.
engine = glimpse.Engine(weights="int8", cache_mb=64)
first, second = engine.ask(picture, question), engine.ask(picture, "Is there a circle?")
print(second, f"({second.cached_tokens} of {second.prompt_tokens} prompt tokens were known)")

# %% Other methods and budgets.
for prune in ("none", "glimpse(threshold=0.9)", "divprune(keep=0.05)", "divprune(keep=0.5)+glimpse"):
    answer = engine.ask(picture, question, prune=prune)
    print(f"{prune:28} {answer.kept_tokens:4} kept: {answer}")

# %% Piece by piece, also asynchronously; what was kept is known before the first word.
stream = engine.stream(picture, question)
for piece in stream:
    print(piece, end="|")
print(f" ({stream.kept.kept_tokens} kept)")


async def several() -> list[str]:
    async def one(question: str) -> str:
        return "".join([piece async for piece in engine.stream(picture, question)])
    return await asyncio.gather(one(question), one("Is there a circle?"))

print(asyncio.run(several()))

# %% A conversation in OpenAI's form.
messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": str(picture)}}, {"type": "text", "text": question}]}]
messages += [{"role": "assistant", "content": engine.ask(messages=messages).text}, {"role": "user", "content": "Is there a circle?"}]
print(engine.ask(messages=messages))

# %% Many questions at the same time, their answers in order.
rows = [{"images": file, "question": "How many shapes are there?"} for file in sorted((folder / "count").glob("*.jpg"))[:6]]
print([str(answer) for answer in engine.ask_many(rows)])
