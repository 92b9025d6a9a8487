"""A curriculum and our log-probabilities inside TRL's GRPOTrainer.

Importing this module imports TRL and checks that the installed version has what is used of it.
"""

from __future__ import annotations

from sec_grpo.integrations.trl.installed import check_installed

check_installed()

from sec_grpo.integrations.trl.checkpoint import STATE_FILE  # noqa: E402
from sec_grpo.integrations.trl.fused import use_fused_loss  # noqa: E402
from sec_grpo.integrations.trl.trainer import CurriculumGRPOTrainer, CurriculumMixin  # noqa: E402

__all__ = ["STATE_FILE", "CurriculumGRPOTrainer", "CurriculumMixin", "use_fused_loss"]
