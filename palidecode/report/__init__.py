"""HTML pages: the numbers and pictures of an evaluation, and pictures with what was predicted."""

from palidecode.report.compare import write_comparison
from palidecode.report.page import made_with, write_report
from palidecode.report.view import RawAnswer, write_view

__all__ = ["RawAnswer", "made_with", "write_comparison", "write_report", "write_view"]
