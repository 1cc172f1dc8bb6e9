#!/usr/bin/env python3
"""Computes reference logits of the same small random models with transformers on PyTorch: see src/main.rs beside this.

    scripts/reference-logits/transformers-logits.py compute/src/references

Writes linear.json (scaled rotary frequencies, which candle has not) and lora.json (a Llama with an adapter, by PEFT), and
prints how far transformers is from what candle wrote for Mistral. Needs torch, transformers 4.35 and peft 0.7 (Debian's
python3-torch 1.13 goes with pip's transformers==4.35.2 and peft==0.7.1).
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

PREFIXES = [1, 20, 65, 96]
PROMPT = [(i * 7 + i * i * 3) % 50 for i in range(PREFIXES[-1])]
MASK = (1 << 64) - 1
BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=50, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu")


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def values(name, shape):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    centre, spread = (1.0, 0.5) if len(shape) == 1 else (0.0, 1.0 if name == "model.embed_tokens.weight" else 0.25)
    unit = [(splitmix64((seed + i) & MASK) >> 48) / 32768.0 - 1.0 for i in range(shape.numel())]
    return (centre + spread * torch.tensor(unit, dtype=torch.float32)).reshape(shape)


def logits(model):
    model.load_state_dict({name: values(name, w.shape) for name, w in model.state_dict().items()})
    model = model.eval()
    with torch.no_grad():
        return [model(torch.tensor([PROMPT[:n]])).logits[0, -1].tolist() for n in PREFIXES]


def lora(folder):
    """Every matrix with an adapter, whose ranks and factors differ by module; its tensors follow from their names, too."""
    named = dict(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                 rank_pattern={"down_proj": 3, "layers.1.mlp.up_proj": 20},
                 alpha_pattern={"down_proj": 9, "layers.1.mlp.up_proj": 10})
    base = LlamaForCausalLM(LlamaConfig(**BASE))
    base.load_state_dict({name: values(name, w.shape) for name, w in base.state_dict().items()})
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **named))
    tensors = {}
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            saved = name.replace(".default.", ".")
            weight.data.copy_(values(saved, weight.shape))
            tensors[saved] = list(weight.shape)
    model = model.eval()
    with torch.no_grad():
        made = [model(torch.tensor([PROMPT[:n]])).logits[0, -1].tolist() for n in PREFIXES]
    config = dict(model_type="llama", **BASE)
    adapter = dict(peft_type="LORA", bias="none", **named)
    file = dict(by="peft 0.7.1", config=config, adapter_config=adapter, adapter_tensors=tensors, ids=PROMPT, prefixes=PREFIXES, logits=made)
    (folder / "lora.json").write_text(json.dumps(file) + "\n")


def main(folder):
    lora(folder)
    scaling = {"type": "linear", "factor": 4.0}
    made = logits(LlamaForCausalLM(LlamaConfig(**BASE, rope_scaling=scaling)))
    config = dict(model_type="llama", **BASE, rope_scaling=scaling)
    file = dict(by="transformers 4.35.2", config=config, ids=PROMPT, prefixes=PREFIXES, logits=made)
    (folder / "linear.json").write_text(json.dumps(file) + "\n")
    other = json.loads((folder / "mistral.json").read_text())
    made = logits(MistralForCausalLM(MistralConfig(**BASE, sliding_window=other["config"]["sliding_window"])))
    pairs = [(a, b) for x, y in zip(made, other["logits"]) for a, b in zip(x, y)]
    worst, top = max(abs(a - b) for a, b in pairs), max(abs(b) for _, b in pairs)
    print(f"mistral: transformers and candle differ by {worst:.2e} where the largest logit is {top:.2f}")


main(pathlib.Path(sys.argv[1]))
