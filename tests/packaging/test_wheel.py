"""The built wheel and source archive hold what they should, and work outside the source tree."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, built from the source archive."""
    pytest.importorskip("build", reason="the build front end comes with the dev extra")
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dist


def test_wheel_contents(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "sec_grpo/__init__.py",
        "sec_grpo/_core.pyi",
        "sec_grpo/py.typed",
        "sec_grpo/kernels/__init__.py",
        "sec_grpo/kernels/reference.py",
        "sec_grpo/kernels/policy_loss.py",
        "sec_grpo/report/page.css",
        "sec_grpo/trainer/grpo_trainer.py",
    ):
        assert name in names
    extensions = [n for n in names if n.startswith("sec_grpo/_core.") and n.endswith(".so")]
    assert len(extensions) == 1
    strays = {name for name in names if name.split("/")[0] not in ("sec_grpo",)}
    assert all(".dist-info/" in name for name in strays)
    assert not any(name.endswith((".a", ".h", ".cpp")) for name in names)


def test_source_archive_contents(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for name in ("CMakeLists.txt", "csrc/bindings.cpp", "LICENSE", "kernels/reference.py"):
        assert name in names
    # Who has the archive alone can read, build and test.
    for name in ("README.md", "docs/README.md", "Makefile", "constraints.txt", "tests/conftest.py"):
        assert name in names
    assert any(name.startswith("benchmarks/results/") for name in names)  # the tests quote them
    outside = (".venv", "build/", ".ci", ".github", "runs/")
    strays = [name for name in names if name.startswith(outside)]
    assert not strays


def test_wheel_works_outside_the_source_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    # The dependencies are this environment's; only the package itself is installed anew.
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    target = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    own = [p for p in sys.path if p.endswith("site-packages")]
    code = f"""
import sys
sys.path += {own!r}
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
import numpy as np, torch
import sec_grpo, sec_grpo._core, sec_grpo.kernels.reference
from sec_grpo import SEC, Curriculum, group_advantages
assert sec_grpo.__file__.startswith({str(target)!r}), sec_grpo.__file__
assert sec_grpo._core.__file__.startswith({str(target)!r})
assert sec_grpo.kernels.reference.__file__.startswith({str(target)!r})
curriculum = Curriculum([1, 2, 2], SEC(), seed=0)
indices = curriculum.draw(4)
curriculum.observe(indices, advantages=np.ones((4, 2)))
assert curriculum.values().max() == 0.5
assert group_advantages(torch.tensor([1.0, 1.0]), num_generations=2).dead.all()
print("works")
"""
    done = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "works", done.stderr
