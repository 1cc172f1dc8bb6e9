#!/usr/bin/env python3
"""Asks llama.cpp for the likeliest next tokens after pieces of a text, on real weights, and for greedy continuations.

    scripts/reference-logits/llama-cpp-log-probabilities.py MODEL.gguf compute/src/references/gemma3-270m.json

Needs llama.cpp as PyPI ships it and a reader of its files (pip install xllamacpp gguf). llama.cpp computes with the weights
in F32, written to a temporary file: where they are quantised it quantises activations too, to 8 bits. What is written holds
token ids and log-probabilities only, no weights.
"""

import json
import pathlib
import sys
import tempfile

import gguf
import numpy
import xllamacpp

PARAGRAPHS = [
    "A cairn is a heap of stones that marks a way. Nobody owns it and everybody may add to it: whoever passes lays a stone on "
    "top, so that the next traveller, in fog or in snow, can see from one heap to the next. ",
    "In the hills above the village there were seven of them, and the children knew each by its name. The third had fallen in "
    "the winter of 1904, when the stream left its bed, and was built again by two shepherds who never agreed on its height. ",
    "Grüße aus Köln! 日本語 and 🙂 are four bytes or three, says the book;   three  spaces\n\n\tand a tab are not one. ",
    "def height(stones):\n    return sum(stone.size for stone in stones if not stone.fallen)\n\n",
    "The surveyor wrote down 312 metres, then 3,120 feet, then 0.31 km, and was asked which of them it was. ",
]
TEXT = "".join(PARAGRAPHS[i % 5] for i in range(17))
CUTS = [9, 30, 57, 118, 190, 260, 361, 420, 463, 520, 600, 777, 1000, 1400, 1900, 2200, 2450, len(TEXT)]
GREEDY = ["Once upon a time, there was a", "The three primary colours are", PARAGRAPHS[0]]


def in_f32(model, out):
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), kind)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(model, out):
    with tempfile.TemporaryDirectory() as folder:
        whole = str(pathlib.Path(folder) / "f32.gguf")
        in_f32(model, whole)
        ask_all(whole, out)


def ask_all(model, out):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.warmup = False
    server = xllamacpp.Server(params)

    def ask(prompt, tokens):
        answer = server.handle_completions({"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 5,
                                            "ignore_eos": True, "cache_prompt": False})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        return answer["usage"]["prompt_tokens"], answer["choices"][0]["logprobs"]["content"]

    pieces = []
    for cut in CUTS:
        count, (first, *_) = ask(TEXT[:cut], 1)
        top = [[t["id"], round(t["logprob"], 5)] for t in first["top_logprobs"]]
        pieces.append({"characters": cut, "tokens": count, "top": top})
    greedy = [{"prompt": p, "ids": [t["id"] for t in ask(p, 32)[1]]} for p in GREEDY]
    by = f"llama.cpp (xllamacpp {xllamacpp.__version__}), weights in F32"
    with open(out, "w") as file:
        json.dump({"by": by, "text": TEXT, "pieces": pieces, "greedy": greedy}, file, ensure_ascii=False)
        file.write("\n")


main(*sys.argv[1:])
