"""LoRA of tokens with and without an adapter on a CPU. tests/test_endpoint.py asks a whole engine."""

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from tutorial import kernels  # noqa: F401  puts its own in their places

SIZES = {"bgmv_shrink": (4, 6), "bgmv_expand": (6, 4), "bgmv_expand_slice": (6, 4)}
REST = {"bgmv_shrink": (2.0,), "bgmv_expand": (True,), "bgmv_expand_slice": (1, 6, True)}


def asked(kernel, columns):
    """Inputs of five tokens, the weights of two adapters, and what five tokens have so far."""
    out, width = SIZES[kernel]
    return torch.rand(5, width), torch.rand(2, 1, out, width), torch.rand(5, out + columns)


@pytest.mark.parametrize("kernel", SIZES)
@pytest.mark.parametrize("numbers", [[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("columns", [1, 3])  # an output is wider than what is written, if vLLM pads it
def test_an_adapter_s_tokens_get_what_vllm_s_own_kernels_give(kernel, numbers, columns):
    inputs, weights, before = asked(kernel, columns)
    found, wanted = before.clone(), before.clone()
    getattr(punica_cpu, kernel)(inputs, weights, found, torch.tensor(numbers), *REST[kernel])
    getattr(lora_ops, kernel)(inputs, weights, wanted, torch.tensor(numbers), *REST[kernel])
    assert torch.allclose(found, wanted)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("kernel", SIZES)
@pytest.mark.parametrize("numbers", [[0, -1, 1, 1, -1], [1, -1, -1, -1, 1], [-1] * 5])
def test_the_base_model_s_tokens_stay_as_they_are(kernel, numbers):
    inputs, weights, before = asked(kernel, 1)
    found, numbers = before.clone(), torch.tensor(numbers)
    getattr(punica_cpu, kernel)(inputs, weights, found, numbers, *REST[kernel])
    assert torch.equal(found[numbers < 0], before[numbers < 0])
    alone, mine = before.clone(), numbers >= 0
    getattr(lora_ops, kernel)(inputs, weights, alone, numbers.clamp(0), *REST[kernel])
    assert torch.allclose(found[mine], alone[mine])


def test_an_output_may_have_fewer_columns_than_the_weights():
    inputs, weights, before = asked("bgmv_expand", -2)
    found, wanted, numbers = before.clone(), before.clone(), torch.tensor([0, 1, 1, 0, 1])
    punica_cpu.bgmv_expand(inputs, weights, found, numbers, True)
    lora_ops.bgmv_expand(inputs, weights, wanted, numbers, True)
    assert torch.allclose(found, wanted)
