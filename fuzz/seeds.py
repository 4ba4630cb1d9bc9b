"""Writes the seeds: one small sound input of each kind, from which the fuzzers go on."""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "seeds"
HIDDEN, VOCAB = 32, 16
SHAPES = {
    "embed_tokens": (VOCAB, HIDDEN), "norm": (HIDDEN,), "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,), "q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, HIDDEN),
    "v_proj": (HIDDEN, HIDDEN), "o_proj": (HIDDEN, HIDDEN), "gate_proj": (HIDDEN, HIDDEN),
    "up_proj": (HIDDEN, HIDDEN), "down_proj": (HIDDEN, HIDDEN),
}
GGUF = {
    "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "blk.0.attn_norm",
    "post_attention_layernorm": "blk.0.ffn_norm", "q_proj": "blk.0.attn_q", "k_proj": "blk.0.attn_k",
    "v_proj": "blk.0.attn_v", "o_proj": "blk.0.attn_output", "gate_proj": "blk.0.ffn_gate",
    "up_proj": "blk.0.ffn_up", "down_proj": "blk.0.ffn_down",
}
MESSAGES = json.dumps([
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <there>"},
    {"role": "assistant", "content": "Yes", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
])
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u0120", "1", "2", "\u0120a", "c", "d", "e", "<0x0A>", "\u2581", "\u2581a"]


def write(target, name, data):
    path = HERE / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def setting(key, value):
    kinds = {bool: (7, "<B"), int: (4, "<I"), float: (6, "<f")}
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        if isinstance(value[0], str):
            items = b"".join(text(item) for item in value)
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items
        kind, form = kinds[type(value[0])]
        items = b"".join(struct.pack(form, item) for item in value)
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + items
    kind, form = kinds[type(value)]
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


def gguf(extra, quantized):
    settings = {
        "general.architecture": "llama", "llama.embedding_length": HIDDEN, "llama.block_count": 1,
        "llama.attention.head_count": 1, "llama.attention.head_count_kv": 1, "llama.feed_forward_length": HIDDEN,
        "llama.context_length": 64, "llama.attention.layer_norm_rms_epsilon": 1e-5, **extra,
    }
    infos, data = b"", b""
    for name, shape in SHAPES.items():
        is_matrix = len(shape) == 2
        kind = 2 if quantized and is_matrix else 1 if is_matrix else 0
        size = shape[0] * 18 if kind == 2 else 2 * shape[0] * shape[-1] if kind == 1 else 4 * shape[0]
        infos += text(GGUF[name] + ".weight") + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", dim) for dim in reversed(shape))
        infos += struct.pack("<IQ", kind, len(data))
        data += bytes((7 * i) % 64 for i in range(size)) + bytes(-size % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(SHAPES), len(settings))
    header += b"".join(setting(*pair) for pair in settings.items()) + infos
    return header + bytes(-len(header) % 32) + data


def safetensors():
    names = {"embed_tokens": "model.embed_tokens", "norm": "model.norm"}
    header, at = {}, 0
    for name, shape in SHAPES.items():
        part = "self_attn." if name[0] in "qkvo" and "proj" in name else "mlp." if "proj" in name else ""
        full = names.get(name, f"model.layers.0.{part}{name}") + ".weight"
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[full] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + bytes((5 * i) % 60 for i in range(at))


def parts(first, rest):
    first = first.encode()
    return struct.pack("<H", len(first)) + first + (rest if isinstance(rest, bytes) else rest.encode())


bpe = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 13, "tokenizer.ggml.merges": ["a b", "\u0120 a"],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
pieces = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": [-float(i) for i in range(16)], "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 10 + [6, 1, 1],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.freq_base": 10000.0,
}
write("gguf", "byte_level", gguf(bpe, True))
write("gguf", "sentencepiece", gguf(pieces, True))
write("gguf", "no_tokenizer", gguf({"general.alignment": 32, "llama.rope.dimension_count": 32}, False))

config = {
    "model_type": "mistral", "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": 1,
    "num_key_value_heads": 1, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "sliding_window": 16, "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}
write("folder", "mistral", parts(json.dumps(config), safetensors()))
config |= {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5}}
write("folder", "llama", parts(json.dumps(config), safetensors()))

byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
special = {"id": 1, "content": "<s>", "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(TOKENS)}, "merges": [["a", "b"], ["\u0120", "a"]],
         "unk_token": "<unk>", "byte_fallback": False, "fuse_unk": False, "dropout": None}
split = {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\d{1,3}|(?!\\S)\\s+"}, "behavior": "Isolated", "invert": False}
document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "post_processor": None,
            "decoder": byte_level, "model": model}
write("tokenizer", "byte_level", json.dumps(document))
document |= {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": None, "model": model | {"byte_fallback": True, "fuse_unk": True},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                       {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
}
write("tokenizer", "sentencepiece", json.dumps(document))

templates = {
    "chatml": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nHi<|im_end|>\n' }}"
              "{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tools": "{%- if tools %}{%- for t in tools %}{{ t | tojson(indent=4) }}\n{%- endfor %}{%- endif %}"
             "{%- set ns = namespace(x=0, last='') %}{%- for m in messages[::-1] %}{%- set ns.x = ns.x + 1 %}"
             "{%- if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}"
             "{%- set ns.last = m.content.split('</think>')[-1].strip() %}{%- endfor %}{{ ns.last ~ ns.x }}{{ strftime_now('%d %b %Y') }}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('Roles must alternate') }}{% endif %}[INST] {{ m.content | trim }} [/INST]{{ eos_token }}"
               "{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}",
    "methods": "{% macro f(a, b=2) %}{{ a.replace('a', 'bb').upper() * b }}{% endmacro %}{% call f('a') %}{% endcall %}"
               "{{ f('aab') }}{{ '{:>5}-{}'.format('x', 1.5) }}{{ '%s %d' | format('a', 3) }}{{ ','.join(['a', 'b']) }}"
               "{% for k, v in {'a': 1}.items() %}{{ k }}{% endfor %}{{ 'a b'.split() | list | reverse | first }}",
}
for name, source in templates.items():
    write("template", name, parts(MESSAGES, source))

grammars = {
    "object": (0, json.dumps({"type": "object", "properties": {"a": {"type": "string", "maxLength": 5, "pattern": "^x+$"},
               "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "minItems": 1, "maxItems": 3}}, "required": ["a"],
               "$defs": {"c": {"anyOf": [{"type": "integer", "minimum": 3}, {"enum": ["x", None]}]}}})),
    "all_of": (0, json.dumps({"allOf": [{"required": ["a"]}, {"oneOf": [{"const": {"a": 1}}, {"type": "object"}]}],
               "additionalProperties": {"type": "number", "multipleOf": 0.5}, "patternProperties": {"^k": {"format": "date"}}})),
    "date": (1, "(19|20)[0-9]{2}-(0[1-9]|1[0-2])"), "classes": (1, "[\\p{L}&&[^a-f]]{1,5}(?i:x|y+)*\\d"),
    "sums": (2, 'start: sum\nsum: NUM | sum "+" NUM\nNUM: /[0-9]+/\n%ignore " "\n'),
    "json": (2, 'start: "a" j b{1,3}\nj: %json {"type": "integer"}\nb[max_tokens=3, stop="x"]: /.*/\n'),
}
for name, (kind, grammar) in grammars.items():
    write("grammar", name, bytes([kind]) + grammar.encode())

function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
chat = {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "max_tokens": 8}
requests = {
    "chat": (0, chat | {"n": 2, "seed": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "logprobs": True,
             "top_logprobs": 2, "stop": ["x", "yz"], "stream": True, "stream_options": {"include_usage": True}}),
    "tools": (0, chat | {"tools": [function], "tool_choice": "required", "max_tokens": 40, "parallel_tool_calls": False}),
    "calls": (0, {"max_tokens": 4, "tools": [function], "tool_choice": "none", "messages": [
             {"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [
             {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
             {"role": "tool", "tool_call_id": "1", "content": "2"}]}),
    "format": (0, chat | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}),
    "completion": (1, {"prompt": ["ab", "c"], "max_tokens": 5, "echo": True, "logprobs": 1, "kv_cache": {"budget": 0.5, "min_budget": 0.25,
                   "policy": "recency"}, "logit_bias": {"5": -3}, "stop_token_ids": [7], "min_tokens": 2, "ignore_eos": True}),
    "ids": (1, {"prompt": [[1, 2], [3]], "max_tokens": 3, "repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1,
            "guided_choice": ["a", "bc"], "priority": -1, "user": "u", "stream": True}),
    "long": (1, {"prompt": "light " * 20, "max_tokens": 30, "kv_cache": {"budget": 0.3}}),
    "embedding": (2, {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 3, "pooling": "last"}),
    "response": (3, {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                 {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                 {"type": "function_call_output", "call_id": "c", "output": "x"}], "instructions": "Be", "max_output_tokens": 4,
                 "tools": [{"type": "function", "name": "f", "parameters": {}}], "stream": True, "text": {"format": {"type": "json_object"}}}),
    "tokenize": (4, {"messages": [{"role": "user", "content": "a"}], "return_token_strs": True}),
    "detokenize": (5, {"tokens": [1, 2, 200]}),
}
for name, (path, body) in requests.items():
    write("request", name, bytes([path]) + json.dumps(body).encode())
