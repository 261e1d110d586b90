"""The example that GlimpsePrune publishes, unchanged but for its placeholders: base model, new modules and picture.

    python published.py [MODEL NEW_MODULES PICTURE]     (without: the model that comes with glimpse)

Needs `pip install qwen-vl-utils torchvision`.
"""
import sys
from pathlib import Path

import torch
from qwen_vl_utils import process_vision_info
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration, Qwen2_5_VL_GP_Processor

tiny = Path(__file__).resolve().parents[2] / "models/tiny"
base_model, new_modules_dir, image_path = sys.argv[1:] or map(str, (tiny / "model", tiny / "new_modules", tiny / "test/cot/read/read_000.jpg"))
question = "What letter is on the orange square?"
device = "cuda:0" if torch.cuda.is_available() else "cpu"

model = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(
    base_model,
    torch_dtype=torch.bfloat16,
    attn_implementation="flash_attention_2",
    device_map={"": device},
)
processor = Qwen2_5_VL_GP_Processor.from_pretrained(base_model)
model.load_new_modules(new_modules_dir)
model.eval()

messages = [{"role": "user", "content": [{"type": "image", "image": image_path}, {"type": "text", "text": question}]}]
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
image_inputs, video_inputs = process_vision_info(messages)
inputs = processor(text=[text], images=image_inputs, videos=video_inputs, padding=True, return_tensors="pt").to(model.device)

model.reset_image_tokens_cache()
with torch.inference_mode():
    generated_ids = model.generate(**inputs, max_new_tokens=1024, do_selection=True)
trimmed = [out[len(inp):] for inp, out in zip(inputs.input_ids, generated_ids)]
print(processor.batch_decode(trimmed, skip_special_tokens=False, clean_up_tokenization_spaces=False)[0])
