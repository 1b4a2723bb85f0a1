"""Evaluation reports: one HTML page with numbers, plots, and pictures of the errors."""

from palidecode.report.page import write_report

__all__ = ["write_report"]
