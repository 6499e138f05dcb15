"""What an adapter loses when it is asked in another way than it was trained. From the project's root:

    python -m benchmarks.pitfalls

Trains once, with the settings of the environment, and asks the test rows three ways: as the notebook does;
with the instruction in the user turn, where LLaMA-Factory's default puts it and most prompts do not; and
sampled, with the temperature and top_p of Qwen2.5's generation_config, which `vllm serve` takes where none
is set. Prints exact match and writes it to benchmarks/pitfalls.json.
"""

import json
from pathlib import Path

from benchmarks import batch_stage

SYSTEMS = """
one = SYSTEMS["fine-tuned"]
SYSTEMS = {"as trained": one, "another layout": one | {"joined": True}, "sampled": one | {"guided": True}}
SAMPLING = SAMPLING | {"top_p": 1.0, "seed": 0}
GUIDE = {"temperature": 0.7, "top_p": 0.8}  # what stands for SAMPLING's in a "guided" row


def ask_as(row, system):
    asked = row | system
    if system.get("joined"):
        asked["instruction"] = "You are a helpful assistant."
        asked["input"] = f"{row['instruction']}\\n{row['input']}"
    return asked
"""

if __name__ == "__main__":
    found = batch_stage.execute(SYSTEMS, "ask_as(row, system)")
    print(json.dumps(found["exact match"], indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
