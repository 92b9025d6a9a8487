"""Which verl is installed, and whether it has what the adapter builds on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from packaging.version import Version

from sec_grpo.integrations.methods import Arguments, lacking

TESTED = "0.5.0 to 0.9.1"
_OLDEST = (0, 5)

# What is overridden or called of the trainer of verl 0.9, with its arguments after self.
TRAINER: dict[str, Arguments] = {
    "_init_dataloader": (),
    "_next_train_batch": ("num_prompts",),
    "_fetch_one_gen_batch": (),
    "_build_replay_buffer": (),
    "_compute_advantage": ("batch", "metrics"),
    "_save_checkpoint": (),
    "_load_checkpoint": (),
    "on_step_end": (),
}
# And of verl 0.8.
RAY_TRAINER: dict[str, Arguments] = {
    "_update_actor": ("batch",),
    "_save_checkpoint": (),
    "_load_checkpoint": (),
}


def installed_version() -> str:
    """The version of the installed verl.

    Raises:
        ImportError: there is none.
    """
    try:
        return metadata.version("verl")
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"sec_grpo.integrations.verl needs verl ({TESTED}), which comes with its own images "
            "and instructions: https://verl.readthedocs.io",
            name="verl",
        ) from None


def minor_version() -> tuple[int, int]:
    """(major, minor) of the installed verl."""
    version = Version(installed_version())
    return version.major, version.minor


def check_installed() -> None:
    """ImportError, with the version, where verl is missing or older than the oldest tried."""
    if minor_version() < _OLDEST:
        raise misfit("it is too old")


def misfit(reason: str) -> ImportError:
    """The error for an installed verl that lacks something."""
    return ImportError(
        f"sec_grpo.integrations.verl does not fit verl {installed_version()}: {reason}. It is "
        f"tested with verl {TESTED}; install one of these, or a newer sec-grpo",
        name="verl",
    )


def check_methods(kind: type, needed: Mapping[str, Arguments]) -> None:
    """ImportError, with the version, where a method is missing or takes other arguments."""
    if reason := lacking(kind, needed):
        raise misfit(reason)
