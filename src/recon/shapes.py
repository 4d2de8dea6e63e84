"""What the documents that recon writes have in common: strict shapes, and the run.

Baselines, which are read again, and the reports for programs are made of these.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A part of a document: no field is missing, and none is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ran(Strict):
    """Where and with what the model ran."""

    architecture: str = Field(description="Class of the model.")
    torch: str = Field(description="Version of torch.")
    transformers: str = Field(description="Version of transformers.")
    device: str = Field(description="Device, as torch names it.")
    dtype: str = Field(description="Dtype of the weights, float32 for one.")
    autocast: str | None = Field(description="Dtype that autocast was on for, or null.")
    attention: str = Field(description="Attention implementation: eager or sdpa.")
    threads: int = Field(description="Threads that torch used for one operation.")
