#!/usr/bin/env python3
"""Computes reference logits of the same small random models with transformers on PyTorch: see src/main.rs beside this.

    scripts/reference-logits/transformers-logits.py compute/src/references

Writes linear.json (scaled rotary frequencies, which candle has not), and prints how far transformers is from what candle
wrote for Mistral. Needs torch and transformers 4.35 (Debian's python3-torch 1.13 and pip's transformers==4.35.2 go together).
"""

import json
import pathlib
import sys

import torch
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


def main(folder):
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
