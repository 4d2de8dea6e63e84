"""What a baseline file holds: the fields and their meaning, not how they are filled.

The file is JSON. A field that is added, goes or changes its meaning makes a new
``schema_version``: a gate must not guess.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from recon.shapes import Ran, Strict

FORMAT: Literal["recon-baseline"] = "recon-baseline"
SCHEMA_VERSION: Literal[1] = 1


def _as_float(value: object) -> object:
    return float(value) if value in ("inf", "-inf", "nan") else value


def _as_json(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)


# JSON has no number for what is not finite.
Figure = Annotated[
    float,
    BeforeValidator(_as_float),
    PlainSerializer(_as_json, return_type=float | str),
]


class Asked(Strict):
    """The model as it was asked for: what loads it again."""

    name: str = Field(description="bundled, random:SIZE, a directory or a hub id.")
    dtype: str | None = Field(description="Dtype to convert to; null: as it is stored.")
    attention: str | None = Field(description="eager or sdpa; null: the model's own.")
    seed: int = Field(description="Seed of random weights and random ids.")
    device: str = Field(description="Where it ran, as torch names it.")


class Setting(Ran):
    """Where and with what the run was made; everything that may change its bits."""

    recon: str = Field(description="Version of recon.")
    python: str = Field(description="Version of Python.")
    machine: str = Field(description="Kind of processor, and its vector instructions.")
    blocks: int = Field(description="Number of transformer blocks.")


class States(Strict):
    """What ``output_hidden_states`` gives."""

    count: int = Field(description="Number of entries.")
    last: str = Field(
        description="What the last entry equals, bit by bit: ln_f, or resid_post of the"
        " last block; unknown if neither."
    )
    one: list[int] = Field(
        description="Entries that are not None when output_hidden_states=1 is asked."
    )
    hooks: int = Field(
        description="Forward hooks that transformers itself had left after asking."
    )
    holds: list[str] = Field(
        description="Verdict on each entry, rebuilt from captures."
    )


class Hooks(Strict):
    """Hooks and overrides on the model that are not transformers' own."""

    before: list[str] = Field(description="Before the run.")
    left: list[str] = Field(description="Left behind by the run: none, unless a fault.")


class Overhead(Strict):
    """Time of a captured pass over that of a bare one."""

    ratio: float = Field(description="Of the medians.")
    low: float = Field(description="Lower end of its interval.")
    high: float = Field(description="Upper end of its interval.")


class Weight(Strict):
    """The fingerprint of one parameter."""

    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="float32 for one.")
    sha256: str = Field(description="First 32 digits of the digest of its bytes.")
    mean: Figure = Field(description="Mean, to six digits.")
    rms: Figure = Field(description="Root mean square, to six digits.")
    projection: list[Figure] = Field(description="Sums with random signs, in float64.")


class Site(Strict):
    """The fingerprint of one captured tensor."""

    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="float32 for one.")
    sha256: str = Field(description="First 32 digits of the digest of its bytes.")
    mean: Figure = Field(description="Mean, to six digits.")
    rms: Figure = Field(description="Root mean square, to six digits.")
    low: Figure = Field(description="Smallest element, to six digits.")
    high: Figure = Field(description="Largest element, to six digits.")
    projection: list[Figure] = Field(description="Sums with random signs, in float64.")
    bound: Figure | None = Field(
        description="Length of the vector of proven bounds on each element, given the "
        "site's inputs; null where nothing is proven."
    )
    law: str = Field(description="What makes it, with constants; empty if unknown.")
    inputs: list[str] = Field(description="The captured sites that it is made from.")
    weights: list[str] = Field(description="The parameters that it is made with.")
    holds: str = Field(
        description="Gravest verdict on it: exact, rounding, unverified."
    )


class Baseline(Strict):
    """One run of a model on stored inputs."""

    format: Literal["recon-baseline"] = Field(description="What this file is.")
    schema_version: Literal[1] = Field(description="Version of this schema.")
    digest: str = Field(description="SHA-256 of all else, as canonical JSON.")
    model: Asked
    environment: Setting
    source: str = Field(description="Where the inputs came from, in words.")
    inputs: dict[str, list[list[int]]] = Field(description="The inputs, B rows of T.")
    hidden_states: States
    returns: dict[str, str] = Field(
        description="What modules return, by class: Tensor, or tuple(Tensor, None)."
    )
    hooks: Hooks
    kept_bytes: int = Field(description="Bytes that the captures keep alive.")
    overhead: Overhead | None = Field(description="Null: not measured.")
    weights: dict[str, Weight] = Field(description="By name.")
    sites: dict[str, Site] = Field(description="In order of computation.")
