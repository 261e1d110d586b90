"""The published way to ask a LLaVA with pruning modules, on this engine: published_llava.py MODEL NEW_MODULES PICTURE."""
import sys

import torch
from llava_gp.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava_gp.model.builder import load_pretrained_model
from PIL import Image

base_model, new_modules, picture = sys.argv[1:]
tokenizer, model, image_processor, _ = load_pretrained_model(
    base_model, None, get_model_name_from_path(base_model), device_map="auto", multimodal=True, attn_implementation="flash_attention_2",
    torch_dtype=torch.bfloat16)
model.load_new_modules(new_modules)
model.config.max_remain_ratio = 0.111
model.eval()

# As conv_templates["vicuna_v1"] of the LLaVA repository writes it.
prompt = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers "
          "to the user's questions. USER: <image>\nWhere is it? ASSISTANT:")
image = Image.open(picture).convert("RGB")
input_ids = tokenizer_image_token(prompt, tokenizer, -200, return_tensors="pt")[None].to(model.device)
asked = {"input_ids": input_ids, "images": process_images([image], image_processor, model.config).to(model.device, model.dtype),
         "image_sizes": [image.size]}

generated = model.generate(**asked, do_selection=True, do_sample=False, max_new_tokens=64)
print(tokenizer.batch_decode(generated, skip_special_tokens=True)[0].strip())
kept = model(**asked, return_dict=True).image_token_bool_masks[0]
grid = model.get_vision_tower().num_patches_per_side
print(f"{int(kept.sum())} of {grid} x {grid} visual tokens kept")
