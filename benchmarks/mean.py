"""The mean of an adapter's weights over the last steps of its training."""

from pathlib import Path

import torch
from transformers import TrainerCallback


class Mean(TrainerCallback):
    """At the end of the training the mean takes the place of the last weights, or is saved beside them.

    Args:
        share: of all steps, the last ones, over which the mean is taken.
        folder: that gets an adapter with the mean; the weights then stay those of the last step.
    """

    def __init__(self, share: float, folder: Path | None = None):
        self.share, self.folder = share, folder

    def on_train_begin(self, args, state, control, *, model, **kwargs):
        """Transformers' hook, before the first step."""
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.sums, self.steps = [torch.zeros_like(p) for p in self.weights], 0

    def on_step_end(self, args, state, control, **kwargs):
        """Transformers' hook, after each optimizer step."""
        if state.global_step > (1 - self.share) * state.max_steps:
            self.steps += 1
            torch._foreach_add_(self.sums, [p.data for p in self.weights])

    def on_train_end(self, args, state, control, *, model, **kwargs):
        """Transformers' hook, before the trainer saves the model."""
        last = [p.data.clone() for p in self.weights]
        for p, total in zip(self.weights, self.sums, strict=True):
            p.data.copy_(total / self.steps)
        if self.folder:
            model.save_pretrained(self.folder, save_embedding_layers=False)
            for p, value in zip(self.weights, last, strict=True):
                p.data.copy_(value)
