"""The batch stage's questions on their way through Ray Data; no engine answers them."""

import json
import os
import subprocess
import sys

from tests import cells

# As the processor's stages do: each batch becomes rows, and rows become a batch again.
THROUGH = """
one = {"few_shot": False, "system": "fine-tuned", "model": "none"}
rows = [row | one | {"guided": n > 60 and n % 2 == 0} for n, row in enumerate((99 * rows["test"])[:100])]
def stage(batch):
    return {"__data": [dict(row) for row in batch["__data"]]}
asked = ray.data.from_items(rows, override_num_blocks=1).map(lambda row: {"__data": prepare(row)})
for _ in range(2):
    asked = asked.map_batches(stage, batch_size=32, num_cpus=0.1)
guided = [bool(row["__data"]["sampling_params"].get("structured_outputs")) for row in asked.take_all()]
print("GUIDED", sum(guided), len(guided))
"""


def test_rows_with_and_without_a_grammar_in_several_batches_of_one_task():
    items = [*cells.SET_UP, *cells.PREPARE, *cells.UNTRAINED, "processor", "questions", THROUGH, *cells.END]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cells", json.dumps(items)],
        env=os.environ | {"DATA": "sample", "VAL_ROWS": "4", "TEST_ROWS": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "GUIDED 19 100" in done.stdout, done.stderr[-3000:]
