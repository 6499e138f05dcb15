"""What benchmarks/train.py measures inside a training worker."""

import json
import time
from pathlib import Path

import torch
from ray.train.huggingface.transformers import RayTrainReportCallback

GIB = 2**30


class Meter(RayTrainReportCallback):
    """Stands where `train_loop` makes its callback; ends the training after some seconds.

    Args:
        path: the file that gets what was found, as JSON.
        rows: in the data; a packed example holds several.
        seconds: to measure, once the first steps are over.
        samples: rows that the training sees at least.
        warmup: the first steps, in which kernels are compiled and memory is claimed.
        memory_gib: the most that PyTorch may take of the GPU, None for all.
        input_casts: whether PEFT casts the input of each adapter to the adapter's float32. Under autocast the
            product casts it back to bf16 at once.
    """

    def __init__(
        self,
        *,
        path: Path,
        rows: int,
        seconds: float,
        samples: int,
        warmup: int,
        memory_gib: float | None,
        input_casts: bool = True,
    ):
        super().__init__()
        self.path = path
        self.rows, self.seconds, self.samples, self.warmup = rows, seconds, samples, max(1, warmup)
        self.input_casts = input_casts
        self.cuda = torch.cuda.is_available()
        self.losses, self.device_bytes = [], 0
        if memory_gib:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib * GIB / total))

    def on_train_begin(self, args, state, control, *, train_dataloader, model, **kwargs):
        examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.rows_per_step = examples * self.rows / len(train_dataloader.dataset)
        base = [
            p for name, p in model.named_parameters() if "lora_" not in name and "embed_tokens" not in name
        ]
        self.parameters = sum(p.numel() for p in base)
        self.attention = model.config._attn_implementation
        self.checkpointing = model.is_gradient_checkpointing
        if not self.input_casts:
            for module in model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.cuda:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()  # all that the GPU holds, CUDA's own part too
            self.device_bytes = max(self.device_bytes, total - free)
        self.last = state.global_step, time.perf_counter()
        if state.global_step <= self.warmup:
            self.first = self.last
        seen = state.global_step * self.rows_per_step >= self.samples
        over = torch.tensor(float(seen and self.last[1] - self.first[1] >= self.seconds), device=args.device)
        if args.world_size > 1:  # all workers stop at the same step
            torch.distributed.all_reduce(over)
        control.should_training_stop |= bool(over)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append([round(state.global_step * self.rows_per_step), logs["loss"]])

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        steps, seconds = (last - first for first, last in zip(self.first, self.last, strict=True))
        found = {
            "steps": steps,
            "seconds": seconds,
            "rows_per_step": self.rows_per_step,
            "samples_per_s": steps * self.rows_per_step / seconds,
            "parameters": self.parameters,
            "attention": self.attention,
            "checkpointing": self.checkpointing,
            "losses": self.losses,
        }
        if self.cuda:
            found["torch_gib"] = torch.cuda.max_memory_reserved() / GIB
            found["device_gib"] = self.device_bytes / GIB
        self.path.write_text(json.dumps(found))
