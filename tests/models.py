"""Small base models of known families: random weights, and chat templates like those of the real ones."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.conftest import ROOT
from tutorial import tasks

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
IM = ["<|im_start|>", "<|im_end|>"]
TURN = ["<start_of_turn>", "<end_of_turn>"]
HEADER = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FAMILIES = {  # Transformers' configuration, chat template, special tokens: first, last, ends of an answer
    "Llama": ("LlamaConfig", "llama3", HEADER, "<|begin_of_text|>", "<|eot_id|>", HEADER[1::3]),
    "Qwen2.5": ("Qwen2Config", "chatml", IM, None, "<|im_end|>", ["<|im_end|>"]),
    "Qwen3": ("Qwen3Config", "qwen3", IM, None, "<|im_end|>", ["<|im_end|>"]),
    "Gemma 3": ("Gemma3TextConfig", "gemma", ["<bos>", "<eos>", *TURN], "<bos>", "<eos>", ["<eos>", TURN[1]]),
    "Mistral": ("MistralConfig", "mistral", ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", ["</s>"]),
}


def make(family: str, folder: Path) -> Path:
    """Write a model of one of `FAMILIES` to a folder, in bfloat16; the folder."""
    kind, template, special, first, last, ends = FAMILIES[family]
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = tasks.load("viggo").sample_rows()["train"][:200]
    pieces.train_from_iterator([text for row in rows for text in row.values()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=first, eos_token=last, pad_token=ends[0]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if first:
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first} $A",
            pair=f"{first} $A {first} $B",
            special_tokens=[(first, tokenizer.convert_tokens_to_ids(first))],
        )
    tokenizer.chat_template = (ROOT / f"tests/templates/{template}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    numbers = tokenizer.convert_tokens_to_ids(ends)
    config = getattr(transformers, kind)(
        **SIZES,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=numbers,
        pad_token_id=numbers[0],
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": numbers}))
    return folder
