"""Whether the installed TRL has the private methods and attributes that the adapter uses."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from sec_grpo.integrations.methods import lacking

TESTED = "1.0.0 to 1.16.0"
# Method of GRPOTrainer -> its arguments after self.
OVERRIDDEN = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "*"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}
# What a trainer has once it is made.
READ = ("_metrics", "_step", "_buffered_inputs")


def installed_version() -> str:
    """The version of the installed TRL."""
    return metadata.version("trl")


def check_installed() -> None:
    """Import TRL's GRPOTrainer and look at the methods that the adapter overrides.

    Raises:
        ImportError: TRL is missing, cannot be imported, or its GRPOTrainer has other methods; the
            message names the version.
    """
    try:
        version = installed_version()
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"sec_grpo.integrations.trl needs TRL ({TESTED}): pip install 'sec-grpo[trl]'",
            name="trl",
        ) from None
    try:
        from trl import GRPOTrainer
    # TRL 1.x wraps the reason into a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"trl {version} is installed but its GRPOTrainer cannot be imported: {error}. Install "
            "what it misses, or a version that fits your transformers",
            name="trl",
        ) from error
    if reason := lacking(GRPOTrainer, OVERRIDDEN):
        raise misfit(reason)


def check_attributes(trainer: Any) -> None:
    """ImportError, with the version, where a trainer lacks an attribute that the adapter uses."""
    for name in READ:
        if not hasattr(trainer, name):
            raise misfit(f"GRPOTrainer sets no {name}")


def misfit(reason: str) -> ImportError:
    """The error for an installed TRL that lacks something."""
    return ImportError(
        f"sec_grpo.integrations.trl does not fit trl {installed_version()}: {reason}. It is tested "
        f"with trl {TESTED}; install one of these, or a newer sec-grpo",
        name="trl",
    )
