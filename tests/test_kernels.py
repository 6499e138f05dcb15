"""What vLLM's CPU kernels make of tokens without an adapter. tests/test_endpoint.py asks a whole engine."""

import pytest
import torch
from vllm.lora.punica_wrapper import punica_cpu

from tutorial import kernels  # noqa: F401  corrects them

SIZES = {"bgmv_shrink": (4, 6), "bgmv_expand": (6, 4), "bgmv_expand_slice": (6, 4)}
SLICE = {"bgmv_expand_slice": (0, 6)}


@pytest.mark.parametrize("kernel", SIZES)
@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, -1, 1], [-1, -1, -1]])
def test_the_base_model_s_tokens_stay_as_they_are(kernel, numbers):
    rows, columns = SIZES[kernel]
    weights, inputs = torch.rand(2, 1, rows, columns), torch.rand(3, columns)
    before = torch.rand(3, rows)
    found = before.clone()
    getattr(punica_cpu, kernel)(inputs, weights, found, torch.tensor(numbers), *SLICE.get(kernel, ()))
    for row, number in enumerate(numbers):
        added = weights[number, 0] @ inputs[row] + (before[row] if "expand" in kernel else 0)
        assert torch.allclose(found[row], before[row] if number < 0 else added)
