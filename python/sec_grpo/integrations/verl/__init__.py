"""A curriculum and our log-probabilities inside verl.

- `sampler`: for verl 0.5 to 0.7, by configuration.
- `main_ppo`: the same sampler for verl 0.8, as a command.
- `plugin`: for verl 0.9, found by verl itself; it offers `trainer`.
- `fused`: log-probabilities under verl's fused kernels, any version.

Importing this package looks at verl's version only, since verl imports the plug-in while it is
being imported itself. docs/integrations/verl.md has the configuration of each.
"""

from __future__ import annotations

from sec_grpo.integrations.verl.installed import check_installed

check_installed()
