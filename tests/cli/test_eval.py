"""`sec-grpo eval`: a trained folder, the authors' rows, adapters, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sec_grpo.cli import app
from sec_grpo.cli.evaluate import judge_of, load_model
from sec_grpo.tasks import get
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

SMALL = ["--limit", "2", "--max_completion_length", "4"]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["eval", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_levels_and_held_out_levels(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = character_tokenizer()
    tiny_qwen2(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    words = ["--data", "sort", "--samples", "2", "--k", "1,2", *SMALL, "--output_dir", str(out)]
    shown = run(str(folder), *words)
    assert "18 (held out)" in shown
    assert "pass@2" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"] == ["18", "20"]
    assert len(summary["levels"]) == 10
    assert summary["levels"][0]["prompts"] == 2
    assert (out / "completions.parquet").is_file()


def test_an_adapter_is_loaded_with_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = character_tokenizer()
    tiny_qwen2(tokenizer).save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_model(str(tmp_path / "adapter"), "float32", 0)
    assert loaded.peft_config


def test_a_function_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(prompts, completions, ground_truth, **kwargs):\n"
        "    return [float(t in p) for p, t in zip(prompts, ground_truth)]\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "ab>", "ground_truth": "a"}\n{"prompt": "b>", "ground_truth": "a"}')
    out = tmp_path / "out"
    run("tiny", "--data", str(rows), "--category", "none", "--reward", f"{path}:score",
        "--max_completion_length", "3", "--output_dir", str(out))  # fmt: skip
    assert json.loads((out / "summary.json").read_text())["levels"][0]["accuracy"] == 0.5


def test_tasks_judge_their_rows() -> None:
    rows = get("countdown").dataset(1, seed=0, levels=[3])
    judge, held_out = judge_of(None, rows)
    assert held_out == {"6"}
    assert judge(f"\\boxed{{{rows[0]['solution']}}}", rows[0]).score == 1.0
    assert judge("\\boxed{1}", rows[0]).score == 0.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("./nowhere", "--data", "sort"), "there is no such folder"),
        (("tests", "--data", "sort"), "holds neither config.json nor adapter_config.json"),
        (("tiny", "--data", "sort", "--k", "1;2"), "--k must be whole numbers"),
        (("tiny", "--data", "sort", "--dtype", "int8"), "--dtype must be one of auto, float32"),
        (("tiny", "--data", "nowhere.parquet"), "nowhere.parquet"),
    ],
)
def test_bad_input(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises((ValueError, OSError)) as caught:
        CliRunner().invoke(app, ["eval", *words], catch_exceptions=False)
    assert message in str(caught.value)
