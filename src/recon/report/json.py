"""A report for programs: JSON with a stable schema, described in docs/json.md.

Fields may be added within a ``schema_version``; none changes its meaning or goes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from recon import __version__

if TYPE_CHECKING:
    from recon.compare import Check
    from recon.differences import Difference
    from recon.report.vocabulary import Vocabulary
    from recon.results import Report

Number = float | Literal["inf"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inputs(_Strict):
    """What the model ran on."""

    source: str = Field(description="Where the inputs came from, in words.")
    batch: int | None = Field(description="Rows, over all batches.")
    tokens: int | None = Field(description="Tokens of the longest row.")


class EnvironmentFields(_Strict):
    """Where and with what the model ran; everything that may change its bits."""

    architecture: str = Field(description="Class of the model.")
    blocks: int = Field(description="Number of transformer blocks.")
    torch: str = Field(description="Version of torch.")
    transformers: str = Field(description="Version of transformers.")
    device: str = Field(description="Device, as torch names it.")
    dtype: str = Field(description="Dtype of the weights, float32 for one.")
    autocast: str | None = Field(description="Dtype that autocast was on for, or null.")
    attention: str = Field(description="Attention implementation: eager or sdpa.")
    training: bool = Field(description="Whether dropout was on (train mode).")
    threads: int = Field(description="Threads that torch used for one operation.")


class HiddenStates(_Strict):
    """The tuple of hidden states that the ledger rebuilds."""

    expected: int = Field(description="Entries: one for each block, and the last.")
    reconciled: int = Field(description="Entries whose check holds.")
    last: str = Field(description="What the last entry is, in a sentence.")


class Timing(_Strict):
    """Wall-clock times after one warm-up pass; null where nothing was timed."""

    seconds: float | None = Field(description="Captured pass and all checks.")
    bare_seconds: float | None = Field(description="The same pass without capture.")
    ratio: float | None = Field(description="seconds over bare_seconds.")


class CheckFields(_Strict):
    """One comparison."""

    site: str = Field(description="The site, or the returned tensor, that was checked.")
    identity: str = Field(description="The law that was checked: qkv, chain and so on.")
    level: str = Field(description="ledger, sketch, replay, certify or capture.")
    verdict: Literal["exact", "rounding", "diverged", "missing", "unverified"] = Field(
        description="Only exact and rounding pass."
    )
    max_abs: Number | None = Field(
        description='Largest absolute error, "inf" if it is not finite; null if '
        "nothing could be compared."
    )
    max_ulp: int | None = Field(
        description="Largest distance in units in the last place; null as for max_abs."
    )
    index: list[int] | None = Field(description="Where the largest error is.")
    reason: str = Field(description="Why it fails, if not by a difference; else empty.")
    bound_ratio: Number | None = Field(
        description="Largest error over its bound, at most 1 if it is rounding; null "
        "where nothing is bounded."
    )
    sharpness: Number | None = Field(
        description="Fault, relative to its row's root mean square, from which any one "
        "element is certain to be caught; null as for bound_ratio."
    )
    excluded: int = Field(description="Rows left out: they may attend to no key.")
    allowed: Number | None = Field(
        description="Error allowed at index; null: none at all."
    )


class Verification(_Strict):
    """What ``recon verify --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["reconciled", "diverged"] = Field(
        description="reconciled only if there are checks and all pass."
    )
    recon: str = Field(description="Version of recon.")
    model: str = Field(description="The model as it was asked for.")
    inputs: Inputs
    environment: EnvironmentFields
    levels: list[str] = Field(description="Levels of proof that were asked for.")
    hidden_states: HiddenStates
    notes: list[str] = Field(description="What to know about the model or the run.")
    timing: Timing
    checks: list[CheckFields] = Field(description="Every check, shallowest first.")


class SiteFields(_Strict):
    """One site; ``l`` in a name stands for the number of a block."""

    site: str = Field(description="Its name here.")
    shape: str = Field(description="Its shape in letters, B T D for one.")
    here: str = Field(description="Its shape with the sizes of this model.")
    origin: str = Field(
        description="captured by a hook, a view of something captured, or derived."
    )
    meaning: str = Field(description="What it is.")
    lens: str | None = Field(description="TransformerLens's name, if it has one.")
    hf: str | None = Field(description="Hugging Face's module path, if it has one.")


class Sites(_Strict):
    """What ``recon sites --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    model: str = Field(description="The model as it was asked for.")
    architecture: str = Field(description="Class of the model.")
    blocks: int = Field(description="Number of transformer blocks.")
    sizes: dict[str, int] = Field(description="What the letters of shapes stand for.")
    sites: list[SiteFields] = Field(description="In order of computation.")


class ApartFields(_Strict):
    """One site in two runs."""

    site: str = Field(description="The site.")
    equal: bool = Field(description="Whether the two tensors are bit-equal.")
    max_abs: Number = Field(description="Largest absolute difference.")
    relative: Number = Field(
        description="Root mean square of the difference over that of the first run."
    )


class DifferenceFields(_Strict):
    """What ``recon diff --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["equal", "rounding", "diverged", "unverified"] = Field(
        description="equal and rounding are right; the others are findings."
    )
    recon: str = Field(description="Version of recon.")
    names: list[str] = Field(description="The two runs as they were asked for.")
    conclusion: str = Field(description="What the difference is, in a sentence.")
    first: str | None = Field(description="First site that differs, or null.")
    sites: list[ApartFields] = Field(description="In order of computation.")
    certified: list[list[CheckFields] | None] = Field(
        description="Each run's own checks at level certify; null without weights."
    )


DOCUMENTS: dict[str, type[BaseModel]] = {
    "verify": Verification,
    "sites": Sites,
    "diff": DifferenceFields,
}


def schema_text(name: str) -> str:
    """Return the JSON schema of one command's output, as kept in docs/schema."""
    return _text(DOCUMENTS[name].model_json_schema())


def verification_text(report: Report, *, model: str, source: str) -> str:
    """Return a report as JSON."""
    rows, tokens = (*report.shape, None, None)[:2]
    return _document(
        Verification(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            model=model,
            inputs=Inputs(source=source, batch=rows, tokens=tokens),
            environment=_environment(report),
            levels=list(report.levels),
            hidden_states=_states(report),
            notes=list(report.notes),
            timing=_timing(report),
            checks=[_check(check) for check in report.checks],
        )
    )


def difference_text(found: Difference) -> str:
    """Return the difference of two runs as JSON."""
    reports = (found.first_report, found.second_report)
    return _document(
        DifferenceFields(
            schema_version="1",
            verdict=found.verdict,
            recon=__version__,
            names=list(found.names),
            conclusion=found.conclusion(),
            first=None if found.first is None else str(found.first.site),
            sites=[
                ApartFields(
                    site=str(apart.site),
                    equal=apart.equal,
                    max_abs=_number(apart.max_abs) or 0.0,
                    relative=_number(apart.relative) or 0.0,
                )
                for apart in found.sites
            ],
            certified=[
                None if report is None else [_check(check) for check in report.checks]
                for report in reports
            ],
        )
    )


def vocabulary_text(listing: Vocabulary) -> str:
    """Return the sites of a model as JSON."""
    return _document(
        Sites(
            schema_version="1",
            recon=__version__,
            model=listing.model,
            architecture=listing.architecture,
            blocks=listing.blocks,
            sizes=dict(listing.sizes),
            sites=[
                SiteFields(
                    **vars(row) | {"lens": row.lens or None, "hf": row.hf or None}
                )
                for row in listing.rows
            ],
        )
    )


def _environment(report: Report) -> EnvironmentFields:
    env = report.environment
    return EnvironmentFields(
        architecture=env.architecture,
        blocks=report.depth,
        torch=env.torch,
        transformers=env.transformers,
        device=env.device,
        dtype=_dtype(env.dtype),
        autocast=None if env.autocast is None else _dtype(env.autocast),
        attention=env.attention,
        training=env.training,
        threads=env.threads,
    )


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _states(report: Report) -> HiddenStates:
    checks = [check for check in report.checks if check.identity == "hidden_states"]
    return HiddenStates(
        expected=report.depth + 1,
        reconciled=sum(check.passed for check in checks),
        last=report.last_state,
    )


def _timing(report: Report) -> Timing:
    took, bare = report.seconds, report.bare_seconds
    ratio = took / bare if took is not None and bare else None
    return Timing(seconds=took, bare_seconds=bare, ratio=ratio)


def _check(check: Check) -> CheckFields:
    return CheckFields(
        site=check.site,
        identity=check.identity,
        level=check.level,
        verdict=check.verdict,
        max_abs=_number(check.max_abs),
        max_ulp=check.max_ulp,
        index=None if check.index is None else list(check.index),
        reason=check.reason,
        bound_ratio=_number(check.bound_ratio),
        sharpness=_number(check.sharpness),
        excluded=check.excluded,
        allowed=_number(check.allowed),
    )


def _number(value: float | None) -> Number | None:
    """Spell infinity out: JSON has no such number."""
    if value is None or math.isfinite(value):
        return value
    return "inf"


def _document(document: BaseModel) -> str:
    return _text(document.model_dump(mode="json"))


def _text(plain: object) -> str:
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"
