"""Training, batch inference and the endpoint must send the same tokens, for every kind of chat template."""

import asyncio
import dataclasses
import json
import pickle
import re
from types import SimpleNamespace

import pytest
import tokenizers
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from tests.conftest import ROOT
from tutorial import TutorialError, data, prompt, tasks, template

VIGGO = tasks.load("viggo")
ROWS = {split: part[:12] for split, part in VIGGO.sample_rows().items()}
EXAMPLES = ROWS["train"][:4]
ODD = {
    "instruction": "Answer in one word.",
    "input": "\n  Wie heißt es, 東京 'oder' so? ",
    "output": "a  b, 東京 ?",
}
TALK = ODD | {
    "input": "And which of them is  the best?\n",
    "history": [[" Which games are fun?", "Portal, Okami "], ["東京, 'oder'?\n", "nein"]],
}
ARGS = {"cutoff_len": 1024}

IM = ["<|im_start|>", "<|im_end|>"]
R1 = [
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant")
]


def family(chat_template, tokens=(), bos=None, eos="<|im_end|>", **more):
    """What `make_model` makes, and what `Chat` decides: the rows as text or turns, a system turn or none."""
    given = {"chat_template": chat_template, "tokens": tokens, "bos": bos, "eos": eos}
    return SimpleNamespace(**{"rendered": True, "system": True, "stops": None, "end": eos} | given | more)


GEMMA = {"tokens": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "bos": "<bos>", "eos": "<eos>"}
FAMILIES = {
    "chatml": family("chatml", IM, rendered=False),
    "llama3": family(
        "llama3",
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        stops=["<|end_of_text|>", "<|eot_id|>"],
    ),
    "qwen3": family("qwen3", IM, rendered=False),
    "gemma": family("gemma", **GEMMA, stops=["<eos>", "<end_of_turn>"], system=False, end="<end_of_turn>"),
    "mistral": family("mistral", ["<s>", "</s>", "[INST]", "[/INST]"], bos="<s>", eos="</s>"),
    "llama2": family("llama2", ["<s>", "</s>"], bos="<s>", eos="</s>"),
    "llama2_sentencepiece": family("llama2", ["<s>", "</s>"], bos="<s>", eos="</s>", spaces="Metaspace"),
    "zephyr_sentencepiece": family("zephyr", ["<s>", "</s>"], bos="<s>", eos="</s>", spaces="Metaspace"),
    "deepseek_r1": family("deepseek_r1", R1, bos=R1[0], eos=R1[1]),
    "empty_thought": family("empty_thought", IM),
    "parts": family("parts", **GEMMA, stops="<end_of_turn>", end="<end_of_turn>"),
    "base": family(None, rendered=True, eos="<|endoftext|>"),
    "base_with_first_token": family(None, ["<s>", "</s>"], bos="<s>", eos="</s>"),
    "chatml_with_first_token": family("chatml", [*IM, "<s>"], bos="<s>"),
}


@pytest.fixture(scope="module")
def make_model(tmp_path_factory):
    """A function that makes a model's folder without weights. Its tokenizer puts `bos` before every text."""

    def make(chat_template, tokens=(), bos=None, eos="<|im_end|>", stops=None, spaces="ByteLevel", **_):  # noqa: PLR0917
        folder = tmp_path_factory.mktemp("model")
        pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
        options = {"add_prefix_space": False} if spaces == "ByteLevel" else {"prepend_scheme": "first"}
        pieces.pre_tokenizer = getattr(tokenizers.pre_tokenizers, spaces)(**options)
        pieces.decoder = getattr(tokenizers.decoders, spaces)()
        letters = [chr(code) for code in range(33, 127)] + list("\n" + ODD["input"] + ODD["output"])
        letters += tokenizers.pre_tokenizers.ByteLevel.alphabet() if spaces == "ByteLevel" else []
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=letters, show_progress=False
        )
        pieces.train_from_iterator([row["input"] for row in ROWS["train"]], trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=pieces,
            bos_token=bos,
            eos_token=eos,
            pad_token=eos,
            clean_up_tokenization_spaces=True,  # as Llama 3's
        )
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        if bos:
            number = tokenizer.convert_tokens_to_ids(bos)
            tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
            )
        texts = chat_template if isinstance(chat_template, dict) else {None: chat_template}
        texts = {
            name: (ROOT / f"tests/templates/{text}.jinja").read_text()
            if text and text.isidentifier()
            else text
            for name, text in texts.items()
        }
        tokenizer.chat_template = texts if isinstance(chat_template, dict) else texts[None]
        tokenizer.save_pretrained(folder)
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=64,
            max_position_embeddings=2048,
            architectures=["LlamaForCausalLM"],
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ).save_pretrained(folder)
        if stops:
            numbers = tokenizer.convert_tokens_to_ids(stops)
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": numbers}))
        return folder

    return make


@pytest.fixture(scope="module")
def folders(make_model):
    return {name: make_model(**vars(each)) for name, each in FAMILIES.items()}


def trained_rows(chat, model_path, rows, folder):
    """What LLaMA-Factory trains on: the notebook's files and arguments, by its own loading."""
    data.write({"train": chat.rows(rows)}, folder, chat.columns)
    args = chat.recipe_args | {"stage": "sft", "do_train": True, "dataset": "train", "use_cpu": True}
    args |= {"model_name_or_path": str(model_path), "dataset_dir": str(folder), "output_dir": f"{folder}/out"}
    model_args, data_args, training_args, _, _ = get_train_args(args)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    return get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)[
        "train_dataset"
    ]


def asked_by_batch(chat, folder, conversations):
    """The tokens that ray.data.llm's own two stages make of conversations. No engine is started."""
    from ray.llm._internal.batch.stages.chat_template_stage import ChatTemplateUDF
    from ray.llm._internal.batch.stages.tokenize_stage import TokenizeUDF

    async def run(stage, rows):
        return [
            row
            async for row in stage.udf([{stage.IDX_IN_BATCH_COLUMN: i} | row for i, row in enumerate(rows)])
        ]

    given = {"data_column": "row", "expected_input_keys": [], "model": str(folder)}
    rows = [{"messages": turns} for turns in conversations]
    texts = asyncio.run(run(ChatTemplateUDF(**given, **chat.template_stage), rows))
    return [row["tokenized_prompt"] for row in asyncio.run(run(TokenizeUDF(**given), texts))]


@pytest.fixture(scope="module")
def asked_by_endpoint(folders):
    """A function that asks vLLM's own renderer for the tokens of a chat request. No engine is started."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers.params import ChatParams
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import get_tokenizer

    engine = EngineArgs(model=str(folders["chatml"]), max_model_len=2048, enforce_eager=True)
    config = engine.create_engine_config()

    def ask(chat, folder, conversations):
        renderer = RENDERER_REGISTRY.load_renderer("hf", config, get_tokenizer(str(folder)))
        given = {
            "default_chat_template_kwargs": {},
            "chat_template": None,
            "chat_template_content_format": "auto",
        }
        given |= chat.engine_kwargs
        options = {"add_generation_prompt": True} | given.pop("default_chat_template_kwargs")
        _, asked = renderer.render_chat(conversations, ChatParams(**given, chat_template_kwargs=options))
        return [each["prompt_token_ids"] for each in asked]

    return ask


@pytest.mark.parametrize("name", FAMILIES)
def test_three_programs_send_the_same_tokens(name, folders, tmp_path, asked_by_endpoint):
    made, folder = FAMILIES[name], folders[name]
    chat = prompt.Chat(folder, ARGS)
    splits = {split: [*rows, ODD, TALK] for split, rows in ROWS.items()}
    chat.check(splits, EXAMPLES, VIGGO, 2048)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = splits["test"]
    for examples in (EXAMPLES, ()):
        turns = [chat.messages(row, examples) for row in rows]
        prompts = asked_by_endpoint(chat, folder, turns)
        assert asked_by_batch(chat, folder, turns) == prompts
    trained = trained_rows(chat, folder, rows, tmp_path)
    for row, asked, row_trained in zip(rows, prompts, trained, strict=True):
        ids, labels = row_trained["input_ids"], row_trained["labels"]
        answer = ids[len(asked) :]
        end = answer.index(tokenizer.convert_tokens_to_ids(made.end))
        assert ids[: len(asked)] == asked
        said = tokenizer.decode(answer[:end], clean_up_tokenization_spaces=False)
        assert said.strip() == row["output"].strip()
        assert tokenizer.decode(answer[end + 1 :]).strip() == ""
        assert labels == [-100] * len(asked) + answer  # the loss is on the answer alone
        # Llama 2 begins every question with it.
        assert not made.bos or "history" in row or asked.count(tokenizer.bos_token_id) == 1
    assert (set(chat.columns) == {"prompt", "response"}) == made.rendered
    assert (chat.messages(rows[0])[0]["role"] == "system") == made.system


def test_a_space_follows_the_first_token_if_the_tokenizer_puts_one_there(folders):
    for name in ("llama2_sentencepiece", "zephyr_sentencepiece"):
        assert (
            prompt.Chat(folders[name], ARGS).side_by_side(ODD)[1].startswith(("<s> [INST]", "<s> <|system|>"))
        )
    assert prompt.Chat(folders["llama2"], ARGS).side_by_side(ODD)[1].startswith("<s>[INST]")


def test_training_and_inference_are_shown_side_by_side(folders):
    trained, asked = prompt.Chat(folders["llama3"], ARGS).side_by_side(ROWS["test"][0])
    assert trained == asked + ROWS["test"][0]["output"] + "<|eot_id|>"


def test_ray_workers_get_the_messages_alone(folders):
    chat = prompt.Chat(folders["gemma"], ARGS)
    copy = pickle.loads(pickle.dumps(chat))  # noqa: S301
    assert copy.messages(ODD, EXAMPLES) == chat.messages(ODD, EXAMPLES)
    assert len(pickle.dumps(chat)) < 500


def test_the_engines_know_what_they_are_given(folders):
    from vllm.entrypoints.chat_utils import load_chat_template
    from vllm.entrypoints.openai.cli_args import FrontendArgs

    known = {field.name for field in dataclasses.fields(FrontendArgs)}
    for folder in folders.values():
        given = prompt.Chat(folder, ARGS).engine_kwargs
        assert given.keys() <= known
        assert load_chat_template(given.get("chat_template")) == given.get("chat_template")


def test_a_date_does_not_change(folders):
    chat = prompt.Chat(folders["llama3"], ARGS)
    assert "Today Date: 26 Jul 2024\n" in chat.side_by_side(ODD)[1]
    ways = {"%Y-%m-%d": "2024-07-26", "%-d %B %Y": "26 July 2024", "%H:%M": "00:00"}
    for way, day in ways.items():
        text = f"{{{{ strftime_now({way!r}) }}}}"
        assert (
            AutoTokenizer.from_pretrained(folders["llama3"]).apply_chat_template(
                chat.messages(ODD), chat_template=template.CLOCK + text, tokenize=False
            )
            == day
        )


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        ({}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ({"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ({"enable_thinking": True}, "<|im_start|>assistant\n"),
        ({"template": "qwen3"}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_thoughts_are_off_unless_the_recipe_sets_them(folders, args, asked):
    chat = prompt.Chat(folders["qwen3"], ARGS | args)
    chat.check(ROWS, EXAMPLES, VIGGO, 2048)
    assert chat.side_by_side(ROWS["test"][0])[1].endswith(asked)
    assert (
        chat.recipe_args["enable_thinking"] == chat.template_stage["chat_template_kwargs"]["enable_thinking"]
    )
    assert chat.engine_kwargs["default_chat_template_kwargs"] == chat.template_stage["chat_template_kwargs"]


def test_a_template_that_is_the_models_own_may_be_named(folders):
    chat = prompt.Chat(folders["chatml"], ARGS | {"template": "chatml"})
    chat.check(ROWS, EXAMPLES, VIGGO, 2048)
    assert chat.recipe_args["template"] == "chatml"
    assert chat.rows(ROWS["test"]) == ROWS["test"]


def test_a_base_model_is_asked_by_the_template_that_the_recipe_names(folders):
    chat = prompt.Chat(folders["base"], ARGS | {"template": "alpaca"})
    chat.check(ROWS, EXAMPLES, VIGGO, 2048)
    assert "### Instruction:" in chat.side_by_side(ROWS["test"][0])[1]
    assert "### Instruction:" in chat.engine_kwargs["chat_template"]


@pytest.mark.parametrize(
    ("name", "named"), [("chatml", "llama3"), ("llama3", "llama3"), ("gemma", "gemma"), ("mistral", "chatml")]
)
def test_the_template_of_another_model_is_refused(folders, name, named):
    chat = prompt.Chat(folders[name], ARGS | {"template": named})
    with pytest.raises(TutorialError) as error:
        chat.check(ROWS, EXAMPLES, VIGGO, 2048)
    said = r"train, row 1: LLaMA-Factory trains on …'.+'… and the endpoint is asked …'.+'… \(token \d+\); "
    assert re.fullmatch(said + "set template: empty in the recipe", str(error.value))
    prompt.Chat(folders[name], ARGS | {"template": "empty"}).check(ROWS, EXAMPLES, VIGGO, 2048)


def test_a_default_among_named_templates_is_used(make_model, asked_by_endpoint):
    folder = make_model({"default": "empty_thought", "tool_use": "chatml"}, IM)
    chat = prompt.Chat(folder, ARGS)
    chat.check(ROWS, EXAMPLES, VIGGO, 2048)
    trained, asked = chat.side_by_side(ODD)
    assert trained == asked + ODD["output"] + "<|im_end|>"
    turns = [chat.messages(ODD)]
    assert asked_by_endpoint(chat, folder, turns) == asked_by_batch(chat, folder, turns)


REFUSES, LISTS = "{{ raise_exception('for images only') }}", "{{ messages[0].content.text.more }}"
ENDLESS, SILENT = (
    "{% for turn in messages %}{{ turn.content }}",
    "{{ bos_token }}{% if messages %}<A>{% endif %}",
)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            ({"rag": "chatml", "tool": "chatml"},),
            "its chat templates are rag, tool; name one of them default",
        ),
        ((ENDLESS,), "its chat template fails: Unexpected end of template"),
        ((LISTS,), "its chat template fails: 'str object' has no attribute 'text'"),
        ((REFUSES,), "its chat template fails: for images only"),
        ((SILENT,), "its chat template leaves out the user turn"),
        (("chatml", IM, None, None), "its tokenizer has no eos_token; set one in tokenizer_config.json"),
    ],
)
def test_a_model_that_cannot_be_asked_is_named_in_one_line(make_model, made, message):
    with pytest.raises(TutorialError, match=rf"^MODEL=model\d+: {re.escape(message)}") as error:
        prompt.Chat(make_model(*made), ARGS)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_is_named_in_one_line(tmp_path):
    with pytest.raises(TutorialError, match=r"^MODEL=.*: its tokenizer cannot be loaded: ") as error:
        prompt.Chat(tmp_path, ARGS)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_ends_every_text_is_refused(make_model):
    folder = make_model("chatml", IM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(TutorialError, match="ends each text with a token; set add_eos_token: false"):
        prompt.Chat(folder, ARGS)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("name", "key", "text", "mark"),
    [
        ("chatml", "output", "inform(name[A])<|im_end|>", "<|im_end|>"),
        ("chatml", "output", "yes<|im_end|>\n<|im_start|>user\nMore?<|im_end|>", "<|im_end|>"),
        ("chatml", "input", "Hi<|im_start|>assistant", "<|im_start|>"),
        ("chatml", "instruction", "Be<|im_end|>brief", "<|im_end|>"),
        ("gemma", "output", "a<end_of_turn>", "<end_of_turn>"),
        ("mistral", "input", "[INST] a [/INST]", "[INST]"),
        ("llama2", "output", "a</s>", "</s>"),
        ("base", "output", "a<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_markup_in_a_row_is_refused(folders, split, name, key, text, mark):  # noqa: PLR0917
    rows = [*ROWS[split][:2], ROWS[split][2] | {key: text}, *ROWS[split][3:]]
    with pytest.raises(TutorialError) as error:
        prompt.Chat(folders[name], ARGS).check(ROWS | {split: rows}, EXAMPLES, VIGGO, 2048)
    assert (
        str(error.value)
        == f"{split}, row 3: its {key} holds {mark!r}, markup for the model; delete it from the row"
    )


def test_a_text_that_llamafactory_changes_is_refused(folders):
    rows = [ODD | {"input": "What is {{idx}}?"}]  # a placeholder of LLaMA-Factory's templates
    with pytest.raises(TutorialError, match=r"train, row 1: LLaMA-Factory trains on …'.*What is 0\?"):
        prompt.Chat(folders["mistral"], ARGS).check(ROWS | {"train": rows}, EXAMPLES, VIGGO, 2048)


def test_an_answer_that_the_tokenizer_cannot_write_is_refused(make_model):
    folder = make_model("chatml", IM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save_pretrained(folder)
    rows = [ODD | {"output": "Tokyo"}]
    with pytest.raises(
        TutorialError, match=r"train, row 1: LLaMA-Factory trains on the answer 'tokyo<.*, not 'Tokyo' and"
    ):
        prompt.Chat(folder, ARGS).check(ROWS | {"train": rows}, EXAMPLES, VIGGO, 2048)


LONG = ROWS["test"][0] | {"input": "Is it " + "very " * 300 + "fun?"}
WORDY = LONG | {"output": "inform(" + "name[a], " * 40 + "esrb[])"}


def test_what_fits_is_counted(folders):
    found = prompt.Chat(folders["chatml"], ARGS).check(ROWS, EXAMPLES, VIGGO, 2048)
    assert found["answer"] < found["training row"] < found["question"]


@pytest.mark.parametrize(
    ("rows", "limits", "message"),
    [
        ({}, (32, 2048), "training row '.+' has N tokens, 32 fit; set cutoff_len in the recipe to more"),
        (
            {"val": [LONG]},
            (256, 4096),
            "training row 'Is it very .*…' has N tokens, 256 fit; set cutoff_len in .*",
        ),
        (
            {"test": [LONG]},
            (512, 512),
            "question 'Is it .*…' has N tokens, 416 fit; set max_model_len in the .*",
        ),
        (
            {"test": [WORDY]},
            (512, 4096),
            "answer 'inf.*…' has N tokens, 96 fit; set max_tokens in the task to more",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(folders, rows, limits, message):
    chat = prompt.Chat(folders["chatml"], {"cutoff_len": limits[0]})
    with pytest.raises(TutorialError) as error:
        chat.check(ROWS | rows, EXAMPLES, VIGGO, limits[1])
    assert re.fullmatch("the " + message.replace("N", r"\d+"), str(error.value))


def test_limits_that_a_task_does_not_say_are_those_of_the_rows(folders, capsys):
    chat, task = prompt.Chat(folders["chatml"], ARGS), tasks.Task.plain("mine")
    examples = list(EXAMPLES)
    longest = chat.check(ROWS, examples, task, 2048)
    assert examples == EXAMPLES
    answers = (
        len(chat.template.tokenizer(row["output"])["input_ids"]) for part in ROWS.values() for row in part
    )
    assert task.max_tokens == max(answers) + 1
    assert chat.check(ROWS, examples, task, 2048) == longest
    assert not capsys.readouterr().out

    room = longest["question"] + task.max_tokens - 1
    shorter = chat.check(ROWS, examples, task, room)
    assert 0 < len(examples) < len(EXAMPLES)
    assert shorter["question"] < longest["question"]
    assert "few-shot prompts have" in capsys.readouterr().out
    with pytest.raises(TutorialError, match=r"the question .* fit; set max_model_len"):
        chat.check(ROWS, [], task, task.max_tokens + 2)
    said = tasks.Task(few_shot=4)
    with pytest.raises(
        TutorialError, match=r"the question .* fit; set max_model_len in the profile to more, or few"
    ):
        chat.check(ROWS, list(EXAMPLES), said, room)


def test_a_history_without_markup_and_the_last_answer_alone_is_learned(folders):
    chat = prompt.Chat(folders["chatml"], ARGS)
    assert chat.recipe_args["mask_history"]
    assert not prompt.Chat(folders["chatml"], ARGS | {"train_on_prompt": True}).recipe_args["mask_history"]
    assert chat.rows([TALK]) == [TALK]
    marked = TALK | {"history": [["one", "two <|im_end|>"]]}
    with pytest.raises(TutorialError, match=r"test, row 1: its history holds '<\|im_end\|>'"):
        chat.check(ROWS | {"test": [marked]}, [], tasks.Task.plain("mine"), 2048)
