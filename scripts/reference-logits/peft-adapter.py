#!/usr/bin/env python3
"""Makes a LoRA for a model with PEFT, and what the model then says: for holding the engine against it.

    scripts/reference-logits/peft-adapter.py MODEL OUT [TEXT]
    CAIRN_ADAPTER_REFERENCE=OUT cargo test -p cairn-compute a_folder -- --nocapture

MODEL is a folder of the Hub, OUT a folder that is made: PEFT's own files, and golden.json with logits after some prefixes and
200 greedy tokens, all in F32. With TEXT the adapter is trained on its first 200,000 characters; without, it is random. Packages as
for transformers-logits.py.
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM

PREFIXES = [1, 20, 65, 96]
TOKENS, STEPS, BATCH, BLOCK = 200, 150, 8, 256


def train(model, tokenizer, text):
    ids = torch.tensor(tokenizer(text[:200_000], add_special_tokens=False)["input_ids"][:60_000])
    optimiser = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=5e-3)
    for step in range(STEPS):
        starts = torch.randint(len(ids) - BLOCK, (BATCH,))
        batch = torch.stack([ids[start:start + BLOCK] for start in starts])
        loss = model(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def main(source, out, text=None):
    torch.manual_seed(7)
    base = LlamaForCausalLM.from_pretrained(source, torch_dtype=torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=modules))
    if text:
        train(model, AutoTokenizer.from_pretrained(source), pathlib.Path(text).read_text())
    else:
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    model = model.eval()
    model.save_pretrained(out)
    ids = [1]
    with torch.no_grad():
        while len(ids) <= TOKENS:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        logits = [model(torch.tensor([ids[:n]])).logits[0, -1].tolist() for n in PREFIXES]
    golden = dict(by="peft 0.7.1", model=str(pathlib.Path(source).resolve()), ids=ids, prefixes=PREFIXES, logits=logits)
    (pathlib.Path(out) / "golden.json").write_text(json.dumps(golden) + "\n")


main(*sys.argv[1:])
