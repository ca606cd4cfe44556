"""report.html: one file that opens offline and says what a run found, and how."""

from __future__ import annotations

from her2_server.report.page import write_report
from her2_server.report.response import write_response_report

__all__ = ["write_report", "write_response_report"]
