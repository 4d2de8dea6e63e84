"""Reports as one HTML file: no network, light and dark, by mouse and by keyboard."""

from __future__ import annotations

from recon.report.html.audit import audit_html
from recon.report.html.baseline import baseline_html
from recon.report.html.difference import difference_html
from recon.report.html.profile import profile_html
from recon.report.html.verification import verification_html

__all__ = [
    "audit_html",
    "baseline_html",
    "difference_html",
    "profile_html",
    "verification_html",
]
