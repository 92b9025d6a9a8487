"""Builds the native tests the way a developer does, without Python headers, and runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE_TESTS = {
    "bounded",
    "crc32",
    "distinct",
    "elementary",
    "engine",
    "fuzz_state",
    "golden",
    "philox",
    "prompt_buffers",
    "reduction",
    "softmax_weights",
    "state",
    "thompson",
    "threads",
    "weight_tree",
}


def run(*command: str) -> str:
    environment = dict(os.environ)
    # cmake, ctest and ninja of the environment that runs the tests come first.
    tools = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([tools, environment.get("PATH", "")])
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout


@pytest.mark.slow
def test_native_tests_pass(tmp_path: Path) -> None:
    build = str(tmp_path / "native")
    run(
        "cmake",
        *("-S", str(ROOT), "-B", build, "-G", "Ninja"),
        "-DSEC_GRPO_BUILD_TESTS=ON",
        "-DSEC_GRPO_BUILD_PYTHON=OFF",
        "-DSEC_GRPO_WERROR=ON",
        "-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON",
        "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON",
    )
    run("cmake", "--build", build)
    listed = run("ctest", "--test-dir", build, "-N")
    names = set(re.findall(r"Test +#\d+: (\S+)", listed))
    assert names == NATIVE_TESTS
    passed = run("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")
    assert "100% tests passed" in passed
    assert set(re.findall(r"Test +#\d+: (\S+) \.+ +Passed", passed)) == NATIVE_TESTS


def test_only_the_bindings_know_python() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp")]
    assert len(sources) > 20
    with_python = {path.name for path in sources if "pybind11" in path.read_text()}
    assert with_python == {"bindings.cpp"}
