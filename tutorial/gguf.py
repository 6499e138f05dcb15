"""A merged model as a GGUF with an Ollama Modelfile, checked and published: `python -m tutorial.gguf`.

The converter is llama.cpp's. It brings a module `gguf` that Transformers needs in another version, so it has
a folder of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tutorial import TutorialError, merged, settings
from tutorial.export import Export, program
from tutorial.files import Place
from tutorial.prompt import Chat
from tutorial.settings import ROOT
from tutorial.template import SYSTEM, USER

CONVERTER = ROOT / ".gguf"
TYPES = ("bf16", "f16", "q8_0")  # bf16 are the weights as they are; Ollama itself makes smaller ones of them


def convert(folder: Path, target: Path, kind: str) -> None:
    """Convert a model's folder to the file `target`.

    TutorialError, with the converter's last line, if it does not know the model, or is not installed.
    """
    if not CONVERTER.is_dir():
        raise TutorialError(
            f"{CONVERTER.name}/ is missing: run make gguf, which installs the converter there"
        )
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", kind, "--outfile", target, folder]
    env = os.environ | {"PYTHONPATH": str(CONVERTER)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TutorialError(
            f"{folder.name}: no GGUF can be made of it: {done.stderr.strip().splitlines()[-1]}"
        )


def modelfile(source: str, chat: Chat, systems: set[str], max_tokens: int) -> str:
    """What `ollama create` reads: the chat template in Go's language, as Ollama does not read Jinja's.

    The source is the GGUF's name. If the rows have one system text alone, it becomes the model's own.
    """
    template, system, user = chat.template, "{{ .System }}", "{{ .Prompt }}"
    if not template.has_system:
        user = f"{{{{ if .System }}}}{system}\n\n{{{{ end }}}}{user}"

    def asked(turns: list[dict[str, str]]) -> str:
        text = template.render(turns).removeprefix(
            template.first
        )  # llama.cpp puts the first token there itself
        return text.replace(SYSTEM["content"], system).replace(USER["content"], user)

    question = asked([USER])
    if template.has_system:
        question = f"{{{{ if .System }}}}{asked([SYSTEM, USER])}{{{{ else }}}}{question}{{{{ end }}}}"
    lines = [f"FROM ./{source}", f'TEMPLATE """{question}{{{{ .Response }}}}{template.end}"""']
    lines += [f'SYSTEM """{text}"""' for text in systems if len(systems) == 1 and text]
    lines += [f'PARAMETER stop "{text}"' for text in sorted(template.names(template.stops))]
    return "\n".join([*lines, "PARAMETER temperature 0", f"PARAMETER num_predict {max_tokens}", ""])


def main() -> None:
    """Convert, check, publish."""
    parser = argparse.ArgumentParser("python -m tutorial.gguf", description=__doc__.splitlines()[0])
    parser.add_argument("--type", choices=TYPES, default=TYPES[0], help="of the weights")
    args = parser.parse_args()
    run = Export.of(settings.load())
    source = run.store.place / "merged" / run.name
    if not source.exists():
        raise TutorialError(f"{source} is not there: run make export first, with the same settings")
    with tempfile.TemporaryDirectory(prefix="gguf-") as scratch:
        folder, made = Path(scratch, run.name), Path(scratch, "made")
        made.mkdir()
        source.copy_to(Place.of(str(folder)))
        file = f"{run.name}-{args.type}.gguf"
        convert(folder, made / file, args.type)
        answers = run.answers_again(made, gguf_file=file)
        print(
            f"answers that equal the adapter's: {merged.equal(answers, list(run.rows['answer']))}", flush=True
        )
        text = modelfile(file, run.chat, set(run.rows["instruction"]), run.results["max_tokens"])
        (made / "Modelfile").write_text(text, encoding="utf-8")
        print(f"published: {run.publish(made, 'gguf')}")


if __name__ == "__main__":
    program(main)
