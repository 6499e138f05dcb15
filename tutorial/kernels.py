"""LoRA on a CPU, one product of matrices for each adapter; profiles/cpu.yaml names it.

vLLM gives each token the number of its adapter, and -1 if it is the base model's. Its CPU kernels copy an
adapter's weights for every token, and read -1 as the last place for an adapter. In a batch with an adapter's
requests, the base model's answers are then those of whatever adapter is there (vllm#48421). The kernels for
GPUs copy no weights and skip these tokens.
"""

from collections.abc import Iterator

from torch import Tensor
from vllm.lora.punica_wrapper import punica_cpu


class PerAdapter:
    """For vLLM's `worker_extension_cls`: whoever imports it has the kernels below."""


def bgmv_shrink(inputs: Tensor, weights: Tensor, output: Tensor, numbers: Tensor, scaling: float) -> None:
    """Write to `output`, one row a token, what each token's adapter makes of its row of `inputs`.

    Args:
        inputs: tokens x in.
        weights: adapters x 1 x out x in.
        output: tokens x at least out, of the type to compute in.
        numbers: of each token's adapter; -1 leaves the token's row of `output` as it is.
        scaling: of what is written.
    """
    for tokens, product in _products(inputs, weights, output, numbers):
        output[tokens, : product.shape[1]] = product * scaling


def bgmv_expand(inputs: Tensor, weights: Tensor, output: Tensor, numbers: Tensor, add_inputs: bool) -> None:
    """As `bgmv_shrink`, added to `output` if `add_inputs`. `output` may have fewer columns than out."""
    bgmv_expand_slice(inputs, weights, output, numbers, 0, output.shape[1], add_inputs)


def bgmv_expand_slice(  # noqa: PLR0917  vLLM passes them by position
    inputs: Tensor, weights: Tensor, output: Tensor, numbers: Tensor, start: int, size: int, add_inputs: bool
) -> None:
    """As `bgmv_expand`, to `size` columns of `output` from `start`."""
    for tokens, product in _products(inputs, weights, output, numbers):
        part = output[:, start : start + min(size, product.shape[1])]
        part[tokens] = product[:, : part.shape[1]] + (part[tokens] if add_inputs else 0)


def _products(
    inputs: Tensor, weights: Tensor, output: Tensor, numbers: Tensor
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """The tokens of each adapter, and the product of their inputs and its weights in `output`'s type."""
    found = set(numbers.tolist())
    for number in found - {-1}:
        tokens = numbers == number if len(found) > 1 else slice(None)
        yield tokens, inputs[tokens].to(output.dtype) @ weights[number].squeeze(0).to(output.dtype).T


# If a later vLLM has no such kernels, no engine starts with this: better than wrong answers.
for kernel in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
    assert hasattr(punica_cpu, kernel.__name__), kernel
    setattr(punica_cpu, kernel.__name__, kernel)
# For a request's first tokens vLLM's form does the same, but repeats the numbers for each layer.
wrapper = punica_cpu.PunicaWrapperCPU
for name in ("_shrink", "_expand", "_expand_slice"):
    setattr(wrapper, f"{name}_prefill", getattr(wrapper, f"{name}_decode"))
