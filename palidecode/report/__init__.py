"""An evaluation as one page to look at: numbers, plots, and pictures with what went wrong."""

from palidecode.report.page import write_report

__all__ = ["write_report"]
