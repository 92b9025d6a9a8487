"""Rules that keep the project's structure: which part may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "sec_grpo"
# Part -> the parts of sec_grpo it may import at all, lazily or not.
ALLOWED = {
    "kernels": {"kernels"},
    "ops": {"kernels", "ops"},
    "curriculum": {"_core", "curriculum"},
    "tasks": {"tasks"},
    "report": {"report"},
    "trainer": {"curriculum", "distributed", "errors", "ops", "report", "rewards", "trainer", ""},
    "simulation": {"curriculum", "report", "simulation"},
    "evaluation": {"curriculum", "errors", "evaluation", "report", "tasks", "trainer"},
    "rewards": {"errors", "rewards", "tasks"},
    "integrations": {
        "curriculum",
        "distributed",
        "errors",
        "integrations",
        "kernels",
        "ops",
        "report",
        "trainer",
    },
}


def sources(part: str) -> list[Path]:
    folders = [PACKAGE / part] + ([ROOT / "kernels"] if part == "kernels" else [])
    return [path for folder in folders for path in folder.rglob("*.py")]


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "sec_grpo":
                names = [f"sec_grpo.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "sec_grpo":
                part = [*name.split("."), ""][1]
                parts.add("" if part.startswith("__") else part)
    return parts


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    files = sources(part)
    assert files
    for path in files:
        extra = imported_parts(path) - ALLOWED[part]
        assert not extra, f"{path.relative_to(ROOT)} imports sec_grpo.{', '.join(sorted(extra))}"


def test_no_package_shadows_hugging_face_kernels() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sec_grpo", {"torch", "transformers", "numpy", "triton"}),
        ("sec_grpo.curriculum", {"torch", "transformers", "triton"}),
        ("sec_grpo.ops", {"transformers", "triton.runtime", "matplotlib"}),
        ("sec_grpo.report", {"torch", "transformers", "matplotlib.pyplot"}),
        ("sec_grpo.tasks", {"torch", "transformers", "datasets"}),
    ],
)
def test_parts_import_only_what_they_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_sources_do_not_include_python() -> None:
    for path in (ROOT / "csrc").rglob("*.[hc]*"):
        if path.name != "bindings.cpp":
            text = path.read_text()
            assert "pybind11" not in text, path
            assert "Python.h" not in text, path
