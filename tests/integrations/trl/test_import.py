"""What importing the TRL adapter checks, and that nothing else imports TRL."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

import trl

from sec_grpo.integrations.trl import CurriculumMixin, installed


def test_it_is_imported_by_the_adapter_alone() -> None:
    script = (
        "import sys, sec_grpo, sec_grpo.trainer, sec_grpo.cli, sec_grpo.integrations\n"
        "print('trl' in sys.modules)\n"
        "import sec_grpo.integrations.trl\n"
        "print('trl' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_a_missing_trl_is_named_with_the_way_to_get_it(monkeypatch) -> None:
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"needs TRL \(1.0.0 to .*pip install 'sec-grpo\[trl\]'"):
        installed.check_installed()


def test_a_trl_that_cannot_be_imported_is_named_with_its_reason(monkeypatch) -> None:
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("No module named 'requests'")

    monkeypatch.setitem(sys.modules, "trl", Broken())
    with pytest.raises(ImportError, match=rf"trl {trl.__version__} is installed but .* 'requests'"):
        installed.check_installed()


@pytest.mark.parametrize("name", sorted(installed.OVERRIDDEN))
def test_a_trl_without_what_is_overridden_is_named_with_its_version(monkeypatch, name) -> None:
    installed.check_installed()
    before = f"sec_grpo.integrations.trl does not fit trl {trl.__version__}: GRPOTrainer"

    def changed(self, something_else):
        pass

    # In the class that has it, which may be a base of GRPOTrainer.
    owner = next(kind for kind in trl.GRPOTrainer.__mro__ if name in vars(kind))
    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(ImportError) as raised:
        installed.check_installed()
    assert str(raised.value).startswith(f"{before}.{name} takes (something_else) where (")
    assert f"It is tested with trl {installed.TESTED}" in str(raised.value)
    monkeypatch.setattr(trl.GRPOTrainer, name, None)
    with pytest.raises(ImportError) as raised:
        installed.check_installed()
    assert str(raised.value).startswith(f"{before} has no {name}.")


@pytest.mark.parametrize("name", installed.READ)
def test_a_trl_whose_trainer_lacks_an_attribute_is_named_with_its_version(make, tmp_path, name):
    class Renamed(trl.GRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            delattr(self, name)

    class WithCurriculum(CurriculumMixin, Renamed):
        pass

    before = f"does not fit trl {trl.__version__}: GRPOTrainer sets no {name}"
    with pytest.raises(ImportError, match=before):
        make(tmp_path, kind=WithCurriculum, curriculum="sec")
