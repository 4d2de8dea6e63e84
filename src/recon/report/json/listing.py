"""What lists: the sites of a model, and what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from recon import __version__
from recon.report.foreign import encodable
from recon.report.json.fields import Foreign, document
from recon.shapes import Strict

if TYPE_CHECKING:
    from recon.report.vocabulary import Vocabulary


class SiteFields(Strict):
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


class Sites(Strict):
    """What ``recon sites --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    model: str = Field(description="The model as it was asked for.")
    architecture: str = Field(description="Class of the model.")
    blocks: int = Field(description="Number of transformer blocks.")
    sizes: dict[str, int] = Field(description="What the letters of shapes stand for.")
    sites: list[SiteFields] = Field(description="In order of computation.")


class InfoFields(Strict):
    """What ``recon info --json`` and ``recon capture --json`` write."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    path: Foreign = Field(description="The file or directory.")
    kind: str = Field(description="What it is, in words.")
    facts: dict[str, str | int | bool | list[str] | None] = Field(
        description="What is in it, by name."
    )


def vocabulary_text(listing: Vocabulary) -> str:
    """Return the sites of a model as JSON."""
    return document(
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


def description_text(path: str, kind: str, facts: Mapping[str, Any]) -> str:
    """Return what a file holds as JSON."""
    return document(
        InfoFields(
            schema_version="1",
            recon=__version__,
            path=path,
            kind=kind,
            facts={encodable(name): _encodable(fact) for name, fact in facts.items()},
        )
    )


def _encodable(fact: Any) -> Any:
    if isinstance(fact, list):
        return [_encodable(one) for one in fact]
    return encodable(fact) if isinstance(fact, str) else fact
