"""What a run of a model was like: the facts that its identities need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch import dtype as Dtype  # noqa: N812 - a field below is called torch

from recon.ops import Activation, Attention, LayerNorm, Linear, Lookup, Op, Unembed
from recon.sites import Site


@dataclass(frozen=True)
class Environment:
    """Where and with what a pass ran; everything that may change its bits.

    ``product_rounding`` is the roundoff of a product's operands where float32 products
    are not computed in float32; ``reduced`` says that half-precision products may be
    summed in half precision.
    """

    architecture: str
    torch: str
    transformers: str
    device: str
    dtype: Dtype
    autocast: Dtype | None
    attention: str
    training: bool
    grad: bool
    threads: int
    product_rounding: float = 0.0
    reduced: bool = False


@dataclass(frozen=True, eq=False)
class Facts:
    """One pass in figures: sizes, weights and what each attention received.

    ``shape`` is B, T of the tokens. ``makers`` holds, for a site that has weights, the
    op that makes it; ``dropout`` the active probability at each site that comes out of
    a dropout; ``tied_last``
    whether the last hidden state is the output of the final LayerNorm; ``given`` the
    tensors that the caller handed in instead of a site, ``encoder`` the encoder states
    that each cross-attention made its keys and values from, ``ids`` what each embedding
    looked up.
    """

    environment: Environment
    depth: int
    heads: int
    width: int
    tied_last: bool
    shape: tuple[int, ...]
    makers: Mapping[Site, Lookup | LayerNorm | Linear | Unembed | Activation]
    attention: Mapping[Site, Attention]
    dropout: Mapping[Site, float]
    given: Mapping[Site, Tensor] = field(default_factory=dict)
    encoder: Mapping[Site, Tensor] = field(default_factory=dict)
    ids: Mapping[Site, Tensor] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    weights_at_run: tuple[tuple[str, Tensor, tuple[int, int] | None], ...] = ()
    notes: tuple[str, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        """Yield what the run itself noted; the weights are the model's own."""
        for named in (self.given, self.encoder, self.ids):
            yield from named.values()
        for call in self.attention.values():
            noted = (call.mask, call.keys, call.values, *call.rng)
            yield from (tensor for tensor in noted if tensor is not None)

    def edited_weights(self) -> list[str]:
        """Name the parameters that were edited or converted since the run.

        Told by their versions and by where they lie; torch raises no version for an
        edit in place through ``.data``, which stays unseen.
        """
        return [
            name
            for name, weight, state in self.weights_at_run
            if state is not None and (weight._version, weight.data_ptr()) != state
        ]


@dataclass(frozen=True, eq=False)
class Identity:
    """One local law: ``op`` of captured ``inputs`` (then dropout) gives ``site``.

    ``name`` is the identity's (``qkv``), one column of the report; ``extra`` are
    inputs that are no sites, such as the keys of a cache.
    """

    name: str
    site: Site
    op: Op
    inputs: tuple[Site, ...] = ()
    extra: tuple[Tensor, ...] = ()
    dropout: float = 0.0
