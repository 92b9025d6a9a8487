"""What a report shows: sections of panels, drawn as PNG files and on the HTML page alike."""

from __future__ import annotations

from collections.abc import Sequence

from sec_grpo.report.accuracy import accuracy
from sec_grpo.report.arms import allocation, each_arm, success
from sec_grpo.report.groups import group_runs, run_labels
from sec_grpo.report.log import RunLog
from sec_grpo.report.panels import Section
from sec_grpo.report.training import outcomes, times, training


def sections(runs: Sequence[RunLog]) -> list[Section]:
    """Every section that the logs hold data for, in reading order."""
    groups = group_runs(runs)
    labels = run_labels(runs)
    found = [
        accuracy(groups, "step"),
        accuracy(groups, "time") if len(runs) > 1 else None,
        allocation(runs, labels),
        training(groups),
        outcomes(runs, labels),
        success(groups),
        *(
            each_arm(run, label, number if len(runs) > 1 else None)
            for number, (run, label) in enumerate(zip(runs, labels, strict=True), 1)
        ),
        times(runs, labels),
    ]
    return [section for section in found if section is not None]
