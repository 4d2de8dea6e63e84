"""What a verification says in words, whatever it is shown on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon.compare import Check
from recon.report.columns import worst

if TYPE_CHECKING:
    from recon.facts import Environment
    from recon.results import Report

_LONG_COUNT = 10_000


def short(dtype: object) -> str:
    """Name a dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def word(check: Check) -> str:
    """Say a check in a word or a figure: the ratio to its bound, ulps, its verdict."""
    if check.verdict == "rounding" and check.bound_ratio is not None:
        return f"{check.bound_ratio:.2g}"
    if check.verdict == "rounding" and check.max_ulp is not None:
        count = check.max_ulp
        return f"{count} ulp" if count < _LONG_COUNT else f"{count:.0e} ulp"
    return check.verdict if check.passed else check.verdict.upper()


def verdict_words(report: Report) -> tuple[str, str]:
    """Return the verdict, and in words how many checks it rests on."""
    checks, failures = len(report.checks), report.failures
    levels = f"({', '.join(report.levels)})"
    if report.verdict == "reconciled":
        rounded = sum(check.verdict == "rounding" for check in report.checks)
        how = f"{rounded} up to rounding" if rounded else "every one exact"
        return "RECONCILED", f"all {checks} checks hold, {how} {levels}"
    words = "no check was made"
    if failures:
        words = f"{len(failures)} of {checks} checks fail, first {failures[0].site}"
    return "DIVERGED", f"{words} {levels}"


def circumstances(report: Report, model: str, source: str) -> list[tuple[str, str]]:
    """Return what ran, on what, and where, as names with values."""
    env = report.environment
    mode = "train mode, dropout on" if env.training else "eval mode"
    size = f"{report.shape[0]} x {report.shape[1]} tokens" if report.shape else ""
    blocks = "1 block" if report.depth == 1 else f"{report.depth} blocks"
    return [
        ("model", f"{model} ({env.architecture}, {blocks})"),
        ("inputs", ": ".join(filter(None, (source, size)))),
        ("run", f"{arithmetic(env)}, {mode}"),
        ("environment", installed(env)),
    ]


def arithmetic(env: Environment) -> str:
    """Say in what dtype a pass ran, and with which attention."""
    cast = "" if env.autocast is None else f", autocast to {short(env.autocast)}"
    return f"{short(env.dtype)}{cast}, {env.attention} attention"


def installed(env: Environment) -> str:
    """Say with which versions a pass ran, and on what."""
    return (
        f"torch {env.torch}, transformers {env.transformers}, "
        f"{env.device}, {env.threads} thread{'s'[: env.threads != 1]}"
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """Return what to know besides the checks, as names with values."""
    rows = [("hidden states", _states(report))]
    if report.last_state:
        rows.append(("", report.last_state))
    quiet = worst(c for c in report.checks if c.identity == "undisturbed")
    if quiet is not None:
        what = "capture changed no bit of what the model returns: "
        rows.append(("undisturbed", what + word(quiet)))
    left_out = max((check.excluded for check in report.checks), default=0)
    if left_out:
        words = f"{left_out} rows may attend to no key: not part of attention checks"
        rows.append(("left out", words))
    if any(check.bound_ratio for check in report.checks):
        rows.append(("numbers", "largest error over its bound: above 1 is no rounding"))
    if report.seconds is not None and report.bare_seconds:
        rows.append(("time", _time(report.seconds, report.bare_seconds)))
    rows += [("note" if not i else "", note) for i, note in enumerate(report.notes)]
    return rows


def _states(report: Report) -> str:
    """Say how many entries of hidden_states the captured pieces reproduce."""
    if "ledger" not in report.levels:
        return "not rebuilt (level ledger was not asked for)"
    checks = [check for check in report.checks if check.identity == "hidden_states"]
    held, count = sum(check.passed for check in checks), report.depth + 1
    exact = all(check.verdict == "exact" for check in checks)
    how = "" if held < count else ", every one exact" if exact else ", up to rounding"
    return f"{held} of {count} rebuilt from embeddings and updates{how}"


def _time(seconds: float, bare: float) -> str:
    return (
        f"{seconds:.3g} s for capture and checks, {seconds / bare:.1f} times the bare "
        f"forward pass ({bare:.3g} s)"
    )
