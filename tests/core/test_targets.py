"""The golden stream from other compilers, flags and processors, as far as this machine has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CROSS = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_EXE_LINKER_FLAGS=-static")
TARGETS = [
    # Whatever flags come from outside, the project's own forbid contraction and reassociation.
    pytest.param("g++", None, "-Ofast -march=native", (), id="gcc, fast math from outside"),
    pytest.param("g++", None, "-O0 -DSEC_GRPO_PORTABLE", (), id="gcc, unoptimised, without AVX2"),
    pytest.param("clang++", None, "-O3 -march=native", (), id="clang"),
    pytest.param("clang++", None, "-O2 -stdlib=libc++", (), id="clang with libc++"),
    pytest.param("aarch64-linux-gnu-g++", "qemu-aarch64-static", "-O2", CROSS, id="aarch64"),
    pytest.param("s390x-linux-gnu-g++", "qemu-s390x-static", "-O2", CROSS, id="big-endian s390x"),
]


def run(*command: str) -> str:
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")])}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "emulator", "flags", "options"), TARGETS)
def test_golden_stream_of_every_target(
    compiler: str, emulator: str | None, flags: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    for tool in filter(None, (compiler, emulator)):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if (
        "libc++" in flags
        and not Path("/usr/include/c++/v1").exists()
        and not list(Path("/usr/lib").glob("llvm-*/include/c++/v1"))
    ):
        pytest.skip("libc++ is not installed")
    build = str(tmp_path / "build")
    run(
        *("cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja", "-DSEC_GRPO_BUILD_TESTS=ON"),
        *("-DSEC_GRPO_BUILD_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=None"),
        *(f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS={flags}", *options),
    )
    run("cmake", "--build", build, "--target", "test_golden")
    # The test checks the numbers itself and ends with status 1 where one differs.
    printed = run(*([emulator] if emulator else []), f"{build}/test_golden")
    assert printed.startswith("697 993 963 936 119 924 75 114 0x5b2b5c26 0x6b32c390 0x438c0f16")
