"""What the README and the pages under docs/ say is true: snippets run, names and files exist."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALL = [*sorted(ROOT.glob("*.md")), *PAGES]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A page may show a call that has nothing to print, as the switch of another library's loss.
    assert done.stdout.strip() or "print(" not in "".join(blocks(page, "python"))


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", ALL, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?://|mailto:)([^)]+)\)", text):
        target, _, fragment = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)} links to {link}"
        assert not fragment or fragment in anchors(file), f"{name(page)} links to {link}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link).resolve()
        for link in re.findall(r"\]\(([^)#]+\.md)", index.read_text())
    }
    missing = [name(page) for page in PAGES if page != index and page.resolve() not in linked]
    assert not missing, f"docs/README.md does not list {', '.join(missing)}"


def commands(path: Path, program: str) -> list[list[str]]:
    """The words of each line of a program in the shell blocks, continued lines joined."""
    text = "\n".join(blocks(path, "sh", "bash", "console", "")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", ALL, ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    from sec_grpo.cli import app
    from sec_grpo.trainer import GRPOConfig

    program = typer.main.get_command(app)
    settings = {field.name for field in dataclasses.fields(GRPOConfig)}
    for words in commands(page, "sec-grpo"):
        if words[1].startswith("-"):
            continue
        assert words[1] in program.commands, words
        command = program.commands[words[1]]
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        for word in words[2:]:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                assert words[1] == "train", words
                assert option[2:].replace("-", "_").removeprefix("no_") in settings, words


@pytest.mark.parametrize("page", ALL, ids=name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page, "make"):
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), words


def names_of_a_run(folder: Path, **options: object) -> set[str]:
    """What a short run of the trainer logs."""
    from sec_grpo import GRPOConfig, GRPOTrainer
    from sec_grpo.tasks import get
    from sec_grpo.tiny import character_tokenizer, tiny_qwen2

    task = get("sort")
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz>")
    trainer = GRPOTrainer(
        tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16),
        task.reward,
        GRPOConfig(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        ),
        train_dataset=task.dataset(4, seed=0),
        processing_class=tokenizer,
    )
    trainer.train()
    return set(trainer.state.log_history[0]) - {"epoch", "step"}


def test_the_table_of_scalars_is_what_is_logged(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "report.md").read_text(), re.MULTILINE)
    documented = {n for row in rows for n in re.findall(r"`([^`]+)`", row.partition(" | ")[0])}
    runs = [
        {"beta": 0.1, "dynamic_sampling_refills": 1},
        {"loss_type": "cispo"},
        {"loss_type": "vespo"},
        {"advantage_estimator": "ppo", "entropy_coef": 0.01},
    ]
    logged = set().union(*(names_of_a_run(tmp_path / str(i), **o) for i, o in enumerate(runs)))
    logged = {n.replace("rewards/sort_reward/", "rewards/{function}/") for n in logged}
    logged = {"curriculum/..." if n.startswith("curriculum/") else n for n in logged}
    assert documented == logged


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["references"][0]["title"] == "Self-Evolving Curriculum for LLM Reasoning"


def test_the_workflow_runs_what_the_makefile_has() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    makefile = (ROOT / "Makefile").read_text()
    assert {"make lint", "make test", "make sanitize", "make test-integrations"} == set(runs)
    for run in runs:
        assert f"\n{run.split()[1]}:" in makefile
