"""Adapters on a CPU beside the base model; profiles/cpu.yaml names it.

vLLM gives each token the number of its adapter, and -1 if it is the base model's. Its CPU kernels read -1 as
the last place for an adapter. In a batch with an adapter's requests, the base model's answers are then those
of whatever adapter is there (vllm#48421). The kernels for GPUs skip these tokens.
"""

from collections.abc import Callable
from functools import wraps

from torch import Tensor
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


class SkipBaseModel:
    """For vLLM's `worker_extension_cls`: whoever imports it has kernels that skip the base model's tokens."""


def _skipping(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel, for the tokens alone that have an adapter. It writes to `output`."""

    @wraps(kernel)
    def skipping(inputs: Tensor, weights: Tensor, output: Tensor, numbers: Tensor, *rest, **options) -> None:
        if numbers.min() >= 0:
            kernel(inputs, weights, output, numbers, *rest, **options)
        elif (mine := numbers >= 0).any():
            part = output[mine]
            kernel(inputs[mine], weights, part, numbers[mine], *rest, **options)
            output[mine] = part

    return skipping


# If a later vLLM has no such kernels, no engine starts with this: better than wrong answers.
for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
    skipping = _skipping(getattr(lora_ops, name))
    for module in (lora_ops, punica_cpu):
        setattr(module, name, skipping)
