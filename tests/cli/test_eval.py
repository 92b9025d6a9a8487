"""`sec-grpo eval`: every kind of model folder, judges, continuing, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sec_grpo.cli import app
from sec_grpo.cli.evaluate import load_model, use_chat_template
from sec_grpo.tasks.answers import NONE
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

SMALL = ["--limit", "2", "--max_completion_length", "4"]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def completions(folder: Path) -> list[dict]:
    return pyarrow.parquet.read_table(folder / "completions.parquet").to_pylist()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model and its tokenizer, in one folder."""
    folder, tokenizer = tmp_path / "model", character_tokenizer()
    tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_levels_and_held_out_levels(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--data", "sort", "--samples", "2", "--k", "1,2", *SMALL, "--output_dir", out]
    shown = run(saved, *words)
    assert "18 (held out)" in shown
    assert "pass@2" in shown
    assert "mean, held out: 0.000 (0.00 to" in shown
    found = summary(out)
    assert found["held_out"] == ["18", "20"]
    assert len(found["levels"]) == 10
    assert found["levels"][0]["prompts"] == 2
    assert found["mean_trained_interval"][0] == 0.0
    assert found["sampling"]["temperature"] == 0.6
    assert len(completions(out)) == 10 * 2 * 2
    assert summary(out)["held_out"] == ["18", "20"]
    run(saved, *words, "--held-out", "2")
    assert summary(out)["held_out"] == ["2"]
    run(saved, *words, "--held-out", "")
    assert summary(out)["held_out"] == []


def test_held_out_levels_of_several_tasks(tmp_path: Path) -> None:
    data = "[{name: countdown, n_per_level: 1}, {name: arc_1d, n_per_level: 1}]"
    words = ["tiny", "--data", data, "--category", "type,difficulty", *SMALL]
    words += ["--output_dir", tmp_path]
    shown = run(*words)
    # Whole, on a terminal of 80 columns.
    assert "countdown 5 1 0.000 0.00 to 0.79" in shown
    assert "countdown 6 (held out) 1 0.000 0.00 to 0.79" in shown
    assert summary(tmp_path)["held_out"] == ["('arc_1d', 40)", "('countdown', 6)"]
    run(*words, "--held_out", "5, 6")
    assert summary(tmp_path)["held_out"] == ["('countdown', 5)", "('countdown', 6)"]


@pytest.mark.parametrize("tokenizer_beside", [True, False])
def test_an_adapter_is_loaded_with_its_base(saved, tmp_path: Path, tokenizer_beside: bool) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(saved)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    if tokenizer_beside:
        character_tokenizer().save_pretrained(tmp_path / "adapter")
    loaded, tokenizer = load_model(str(tmp_path / "adapter"), "float32", 0)
    assert loaded.peft_config
    assert len(tokenizer) == len(character_tokenizer())
    digests = []
    for folder in (tmp_path / "adapter", saved):
        run(folder, "--data", "sort", *SMALL, "--output_dir", tmp_path / "out", "--overwrite")
        digests.append(summary(tmp_path / "out")["sampling"]["model"])
    assert digests[0] != digests[1]


def test_the_folders_of_a_run(tmp_path: Path) -> None:
    """A checkpoint, the run's own folder, and that of a run with LoRA."""
    small = "--max_steps 2 --save_steps 1 --per_device_train_batch_size 4 --num_generations 2 "
    small += "--max_completion_length 3"
    for name, lora in (("full", []), ("lora", ["--lora", "{r: 2, target_modules: [q_proj]}"])):
        words = [
            *["train", "--model", "tiny", "--data", "sort", "--max_completion_length", "3"],
            *small.split(),
        ]
        done = CliRunner().invoke(
            app, [*words, *lora, "--output_dir", name], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    for folder in ("full", "full/checkpoint-1", "full/checkpoint-2"):
        run(folder, "--data", "sort", *SMALL, "--output_dir", f"out/{folder}")
    digests = [
        summary(Path("out", name))["sampling"]["model"] for name in ("full", "full/checkpoint-2")
    ]
    assert digests[0] == digests[1]
    for part in Path("full").glob("*.*"):
        part.unlink()
    with pytest.raises(
        ValueError, match="holds checkpoints: name one of them, as full/checkpoint-2"
    ):
        run("full", "--data", "sort", *SMALL)


def test_a_function_judges(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(prompts, completions, ground_truth, **kwargs):\n"
        "    return [0.5 * (t in p) for p, t in zip(prompts, ground_truth)]\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "ab>", "ground_truth": "a"}\n{"prompt": "b>", "ground_truth": "a"}')
    out = tmp_path / "out"
    words = ["tiny", "--data", rows, "--category", "none", "--reward", f"{path}:score",
             "--max_completion_length", "3", "--output_dir", out]  # fmt: skip
    run(*words)
    assert summary(out)["levels"][0]["accuracy"] == 0.0
    assert summary(out)["levels"][0]["mean_score"] == 0.25
    run(*words, "--solved", "0.5")
    assert summary(out)["levels"][0]["accuracy"] == 0.5


def test_tasks_judge_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("tiny", "--data", "countdown,arc_1d", "--category", "type,difficulty", *SMALL,
        "--output_dir", out)  # fmt: skip
    assert {row["reason"] for row in completions(out)} == {NONE}
    labels = {level["label"] for level in summary(out)["levels"]}
    assert "('countdown', 6)" in labels
    # The rows of one task, by the words of another reward.
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "?", "ground_truth": "x", "difficulty": 1}))
    run("tiny", "--data", rows, "--reward", "{name: math}", *SMALL, "--output_dir", tmp_path / "b")
    assert completions(tmp_path / "b")[0]["reason"] == NONE


def test_chat_templates(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    message = {"role": "user", "content": "1+1"}
    rows.write_text(json.dumps({"prompt": [message], "ground_truth": "2", "data_source": "math"}))
    (tmp_path / "chat.jinja").write_text(CHAT)
    words = ["tiny", "--data", rows, "--category", "none", *SMALL, "--output_dir", tmp_path / "out"]
    for template, prompt in (("none", "1+1"), (tmp_path / "chat.jinja", "<user>1+1<assistant>")):
        run(*words, "--chat_template", template, "--overwrite")
        assert completions(tmp_path / "out")[0]["prompt"] == prompt
    with pytest.raises(ValueError, match="auto, none or a Jinja file; there is no file 'x.jinja'"):
        use_chat_template(character_tokenizer(), "x.jinja")


def test_the_same_command_continues_and_another_has_its_own_folder(tmp_path: Path) -> None:
    run("tiny", "--data", "sort", *SMALL)
    (folder,) = Path("runs/eval").iterdir()
    assert folder.name.startswith("tiny-sort-")
    kept = (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").write_bytes(kept[: len(kept) // 2])
    run("tiny", "--data", "sort", *SMALL)
    assert (folder / "samples.jsonl").read_bytes() == kept
    run("tiny", "--data", "sort", *SMALL, "--seed", "1")
    assert len(list(Path("runs/eval").iterdir())) == 2
    words = ["tiny", "--data", "sort", *SMALL, "--seed", "1", "--output_dir", folder]
    with pytest.raises(ValueError, match="holds samples of another evaluation.*seed: 0 there"):
        run(*words)
    run(*words, "--overwrite")


def test_a_killed_evaluation_loses_no_batch(tmp_path: Path, monkeypatch) -> None:
    words = ["tiny", "--data", "sort", "--limit", "3", "--max_completion_length", "40",
             "--batch_size", "2"]  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "sec_grpo", "eval", *words, "--output_dir", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples = tmp_path / "killed" / "samples.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (
        not samples.exists() or samples.read_bytes().count(b"\n") < 5
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = samples.read_bytes()
    assert 5 <= kept.count(b"\n") < 31
    whole = (kept.count(b"\n") - 1) // 2 * 2
    lines = kept.splitlines(True)[: 1 + whole]
    for folder in ("killed", "whole"):
        run(*words, "--output_dir", folder)
    assert samples.read_bytes().splitlines(True)[: 1 + whole] == lines
    assert samples.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert completions(tmp_path / "killed") == completions(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("./nowhere", "--data", "sort"), "there is no such folder"),
        (("tests", "--data", "sort"), "holds neither config.json nor adapter_config.json"),
        (("tiny", "--data", "sort", "--k", "1;2"), "--k must be whole numbers"),
        (("tiny", "--data", "sort", "--dtype", "int8"), "--dtype must be one of auto, float32"),
        (("tiny", "--data", "nowhere.parquet"), "nowhere.parquet"),
        (("tiny", "--data", "sort", "--reward", "chess"), "unknown task 'chess'"),
        (("tiny", "--data", "sort", "--limit", "0"), "--limit must be at least 1"),
        (("tiny", "--data", ""), "data must be a file"),
        (("tiny", "--data", "README.jsonl"), "no file 'README.jsonl'"),
        (
            ("tiny", "--data", "sort", "--held_out", "18,19"),
            "--held_out must name levels of the data, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20; got '19'",
        ),
    ],
)
def test_bad_input(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises((ValueError, OSError)) as caught:
        CliRunner().invoke(app, ["eval", *words], catch_exceptions=False)
    assert message in str(caught.value)


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    tiny_qwen2(character_tokenizer(), hidden_size=16, num_hidden_layers=1).save_pretrained("alone")
    with pytest.raises(ValueError, match="model alone: the folder holds no tokenizer; save it"):
        load_model("alone", "auto", 0)
