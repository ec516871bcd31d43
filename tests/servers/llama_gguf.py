"""A model of the lab as a GGUF file, so that llama.cpp does the arithmetic and not transformers.

It converts what the lab makes and nothing else: Llama, 32-bit weights, byte-level BPE cut by the
regular expression of GPT-2.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_gguf(folder: Path, path: Path, *, begin: bool) -> Path:
    """Convert a model folder.

    Parameters
    ----------
    folder : Path
        Made by the lab.
    path : Path
        Where to write.
    begin : bool
        Whether a server is to put the beginning-of-sequence token before each prompt.
    """
    # Here and below, so that the folder's modules can be imported without the optional packages.
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    rope = config["rope_parameters"]
    assert rope["rope_type"] == "default", rope

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"], begin)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    weights = load_file(folder / "model.safetensors")
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in weights)
    for name, values in weights.items():
        assert values.dtype == np.float32, f"{name} is {values.dtype}"
        if name.endswith("q_proj.weight"):
            values = _permuted(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _permuted(values, kv_heads)
        # llama.cpp takes the embeddings for the output where there is no output.weight: tied
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: it rotates neighbours, transformers the halves of each head."""
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def _add_tokenizer(writer: Any, folder: Path, size: int, begin: bool) -> None:
    from gguf import TokenType

    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    cut = content["pre_tokenizer"]
    assert (cut["type"], cut["add_prefix_space"], cut["use_regex"]) == ("ByteLevel", False, True)
    assert content["normalizer"] is None
    tokens = {number: token for token, number in content["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for added in content["added_tokens"]:
        assert added["special"]
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL
    for number in set(range(size)) - set(tokens):  # the embedding may have rows to spare
        tokens[number] = f"[unused {number}]"
        types[number] = TokenType.UNUSED
    (mark,) = (added["id"] for added in content["added_tokens"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[number] for number in range(size)])
    writer.add_token_types([types[number] for number in range(size)])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(mark)
    writer.add_eos_token_id(mark)
    writer.add_add_bos_token(begin)
    writer.add_add_eos_token(False)
