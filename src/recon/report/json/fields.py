"""What several documents share: runs, inputs, checks; and how a document is written."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from recon.report.foreign import encodable
from recon.shapes import Ran, Strict

if TYPE_CHECKING:
    from recon.compare import Check
    from recon.facts import Environment
    from recon.profiling.results import Profile
    from recon.results import Report

Number = float | Literal["inf"]


def _encodable(value: object) -> object:
    # What is no text is for pydantic to refuse.
    return encodable(value) if isinstance(value, str) else value


# Words that are not recon's own.
Foreign = Annotated[str, BeforeValidator(_encodable)]


class Inputs(Strict):
    """What the model ran on."""

    source: str = Field(description="Where the inputs came from, in words.")
    batch: int | None = Field(description="Rows, over all batches.")
    tokens: int | None = Field(description="Tokens of the longest row.")


class RunFields(Ran):
    """Where and with what the model ran; everything that may change its bits."""

    training: bool = Field(description="Whether dropout was on (train mode).")


class EnvironmentFields(RunFields):
    """Where and with what the model ran, and how deep it is."""

    blocks: int = Field(description="Number of transformer blocks.")


class CheckFields(Strict):
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


def environment_fields(of: Report | Profile) -> EnvironmentFields:
    """Return where and with what a report or a profile was made."""
    return EnvironmentFields(**run_fields(of.environment), blocks=of.depth)


def run_fields(env: Environment) -> dict[str, Any]:
    """Return the values of ``RunFields``."""
    return {
        "architecture": env.architecture,
        "torch": env.torch,
        "transformers": env.transformers,
        "device": env.device,
        "dtype": dtype(env.dtype),
        "autocast": None if env.autocast is None else dtype(env.autocast),
        "attention": env.attention,
        "training": env.training,
        "threads": env.threads,
    }


def dtype(name: object) -> str:
    """Name a dtype without ``torch.``."""
    return str(name).removeprefix("torch.")


def check_fields(check: Check) -> CheckFields:
    """Return one comparison as fields."""
    return CheckFields(
        site=check.site,
        identity=check.identity,
        level=check.level,
        verdict=check.verdict,
        max_abs=number(check.max_abs),
        max_ulp=check.max_ulp,
        index=None if check.index is None else list(check.index),
        reason=check.reason,
        bound_ratio=number(check.bound_ratio),
        sharpness=number(check.sharpness),
        excluded=check.excluded,
        allowed=number(check.allowed),
    )


def number(value: float | None) -> Number | None:
    """Spell infinity out: JSON has no such number."""
    if value is None or math.isfinite(value):
        return value
    return "inf"


def document(filled: BaseModel) -> str:
    """Return a document as JSON."""
    return text_of(filled.model_dump(mode="json"))


def text_of(plain: object) -> str:
    """Return plain data as JSON, as it is printed and kept in files."""
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"
