"""recon proves that captured transformer activations are right.

Modules are nouns (``verification``) and functions verbs (``verify``): a module and a
function of one name would replace each other on this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recon.display import Displayed

if TYPE_CHECKING:
    from recon.auditing.findings import AuditError as AuditError
    from recon.auditing.findings import AuditReport as AuditReport
    from recon.auditing.findings import Finding as Finding
    from recon.auditing.session import audit as audit
    from recon.auditing.session import audit_captures as audit_captures
    from recon.baseline.checking import accept_baseline as accept_baseline
    from recon.baseline.checking import check_baseline as check_baseline
    from recon.baseline.checking import record_baseline as record_baseline
    from recon.baseline.document import Baseline as Baseline
    from recon.baseline.findings import BaselineError as BaselineError
    from recon.baseline.findings import BaselineReport as BaselineReport
    from recon.capturing import capture as capture
    from recon.collecting import Storing as Storing
    from recon.collecting import collect as collect
    from recon.compare import Check as Check
    from recon.differences import Difference as Difference
    from recon.differences import diff as diff
    from recon.errors import BudgetError as BudgetError
    from recon.errors import CaptureError as CaptureError
    from recon.errors import LeakError as LeakError
    from recon.errors import ReconciliationError as ReconciliationError
    from recon.errors import ReconError as ReconError
    from recon.errors import UnknownSiteError as UnknownSiteError
    from recon.errors import UnsupportedError as UnsupportedError
    from recon.errors import UsageError as UsageError
    from recon.ledger import decompose as decompose
    from recon.ledger import reconstruct as reconstruct
    from recon.loading import load_trace as load_trace
    from recon.models import load_model as load_model
    from recon.profiling.results import Profile as Profile
    from recon.profiling.session import profile as profile
    from recon.prompts import Prompts as Prompts
    from recon.prompts import prompts_of as prompts_of
    from recon.recorder import Recorder as Recorder
    from recon.results import Report as Report
    from recon.sites import Site as Site
    from recon.sites import site as site
    from recon.storage.captures import Captures as Captures
    from recon.storage.captures import load_captures as load_captures
    from recon.trace import Trace as Trace
    from recon.verification import verify as verify
    from recon.verification import verify_trace as verify_trace

__version__ = "0.1.0"

_HOME = {
    "audit": "auditing.session",
    "audit_captures": "auditing.session",
    "AuditError": "auditing.findings",
    "AuditReport": "auditing.findings",
    "Finding": "auditing.findings",
    "accept_baseline": "baseline.checking",
    "check_baseline": "baseline.checking",
    "record_baseline": "baseline.checking",
    "Baseline": "baseline.document",
    "BaselineError": "baseline.findings",
    "BaselineReport": "baseline.findings",
    "capture": "capturing",
    "collect": "collecting",
    "Storing": "collecting",
    "Check": "compare",
    "BudgetError": "errors",
    "CaptureError": "errors",
    "LeakError": "errors",
    "ReconError": "errors",
    "ReconciliationError": "errors",
    "UnknownSiteError": "errors",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "Difference": "differences",
    "decompose": "ledger",
    "diff": "differences",
    "reconstruct": "ledger",
    "load_model": "models",
    "load_trace": "loading",
    "Profile": "profiling.results",
    "profile": "profiling.session",
    "Prompts": "prompts",
    "prompts_of": "prompts",
    "Recorder": "recorder",
    "Site": "sites",
    "site": "sites",
    "Captures": "storage.captures",
    "load_captures": "storage.captures",
    "Trace": "trace",
    "Report": "results",
    "verify": "verification",
    "verify_trace": "verification",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``recon --help`` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'recon' has no attribute {name!r}")
    value = getattr(import_module(f"recon.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _fragment(thing: object) -> str:
    """Return what a notebook shows of an object; what draws it is imported now."""
    from recon.report.html.fragments import fragment

    return fragment(thing)


Displayed.draws = staticmethod(_fragment)


def __dir__() -> list[str]:
    return sorted(__all__)
