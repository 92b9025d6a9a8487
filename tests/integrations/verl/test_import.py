"""What importing the verl adapter checks, and what verl itself imports of it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

pytest.importorskip("verl", reason="needs verl (make test-verl-newest)")

from sec_grpo.integrations.verl import installed


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )


def test_nothing_but_the_adapter_imports_verl() -> None:
    script = (
        "import sys, sec_grpo, sec_grpo.trainer, sec_grpo.integrations.verl\n"
        "print(sorted({'verl', 'ray'} & set(sys.modules)))"
    )
    assert run(script).stdout.strip() == "[]"


def test_a_missing_or_old_verl_is_named(monkeypatch) -> None:
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "version", lambda name: "0.4.1")
    with pytest.raises(ImportError, match=r"does not fit verl 0\.4\.1: it is too old"):
        installed.check_installed()
    monkeypatch.setattr(installed.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"needs verl \(0\.5\.0 to 0\.9\.1\)"):
        installed.check_installed()


def test_a_class_without_a_method_is_named_with_the_version(monkeypatch) -> None:
    class Trainer:
        def _update_actor(self, data):
            pass

    monkeypatch.setattr(installed.metadata, "version", lambda name: "0.99")
    with pytest.raises(ImportError, match=r"verl 0\.99: Trainer\._update_actor takes \(data\) whe"):
        installed.check_methods(Trainer, {"_update_actor": ("batch",)})
    with pytest.raises(ImportError, match=r"verl 0\.99: Trainer has no _save"):
        installed.check_methods(Trainer, {"_save": ()})


@pytest.mark.parametrize("version", ["0.10.0", "0.9rc1", "0.9.1.post2", "1.0.dev0+g1234"])
def test_versions_of_any_form_are_read(monkeypatch, version) -> None:
    monkeypatch.setattr(installed.metadata, "version", lambda name: version)
    expected = {"0.10.0": (0, 10), "1.0.dev0+g1234": (1, 0)}.get(version, (0, 9))
    assert installed.minor_version() == expected


def test_modules_for_other_versions_say_which_way_to_go() -> None:
    version = installed.minor_version()
    if version >= (0, 9):
        pytest.importorskip("ray", reason="needs ray")
        wrong = {"sampler": "trainer.v1.trainer_mode=sec_grpo", "main_ppo": "no samplers"}
    elif version == (0, 8):
        wrong = {"trainer": "No module named 'transfer_queue'|verl.trainer.ppo.v1"}
    else:
        wrong = {"main_ppo": "Set data.sampler before it"}
    for module, words in wrong.items():
        done = run(f"import sec_grpo.integrations.verl.{module}")
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert any(word in last for word in words.split("|")), last


@pytest.mark.skipif(installed.minor_version() < (0, 9), reason="verl before 0.9 has no plug-ins")
def test_verl_finds_the_trainer_by_itself() -> None:
    script = (
        "import verl\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('sec_grpo').__module__, get_trainer_cls('sync').__name__)"
    )
    expected = "sec_grpo.integrations.verl.trainer PPOTrainerSync"
    assert run(script).stdout.split("\n")[-2] == expected


@pytest.mark.skipif(installed.minor_version() < (0, 9), reason="verl before 0.9 has no plug-ins")
def test_a_trainer_that_does_not_fit_is_logged() -> None:
    """verl itself swallows the errors of plug-ins."""
    script = (
        "import os; os.environ['VERL_USE_EXTERNAL_PLUGINS'] = 'none'\n"
        "from verl.trainer.ppo.v1 import PPOTrainerSync\n"
        "del PPOTrainerSync.__mro__[1]._fetch_one_gen_batch\n"
        "import sec_grpo.integrations.verl.plugin"
    )
    done = run(script)
    assert done.returncode == 1
    assert (
        "trainer_mode=sec_grpo is not available: sec_grpo.integrations.verl does not" in done.stderr
    )
    assert "PPOTrainerSync has no _fetch_one_gen_batch" in done.stderr
