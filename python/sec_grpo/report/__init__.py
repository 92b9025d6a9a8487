"""Reading a run's log, plotting it and summing it up."""

from sec_grpo.report.log import Evaluation, MetricsWriter, RunLog, read_run

__all__ = ["Evaluation", "MetricsWriter", "RunLog", "read_run"]
