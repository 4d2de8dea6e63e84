"""What a model computed: tensors with named axes, and the weights that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from recon.ops import Lookup
from recon.sites import Site
from recon.trace import Trace

# Forms begin with these where a backward pass of the code's own made the tensor.
GRADIENT = "gradient"
TIMES_VALUE = f"{GRADIENT} times value"


@dataclass(frozen=True, eq=False)
class Quantity:
    """A tensor that a pass computed at a site, or that a formula makes of it.

    ``axes`` name its axes (``B T D``); ``form`` says in words what was done to the site
    (empty: nothing), ``run`` which pass it comes from (empty: the one asked for),
    ``side`` on which side of an edit it is, where the code edits that very site.
    ``passes`` numbers the backward passes, from 1, whose gradient it is or sums.
    """

    site: Site
    tensor: Tensor
    axes: tuple[str, ...]
    form: str = ""
    run: str = ""
    side: str = ""
    passes: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Say in words what it is: ``h.3.ln_1 without weight and bias``."""
        words = f"{in_words(self.site, self.form)} {self.side}".strip()
        return f"{words} of {self.run}" if self.run else words


def in_words(place: Site, form: str) -> str:
    """Name a form of a site: ``the gradient at h.3.mlp_out, in backward pass 2``."""
    if not form.startswith(GRADIENT):
        return f"{place} {form}".strip()
    words = form.removeprefix(TIMES_VALUE)
    if words != form:
        return f"the gradient times the value at {place}{words}"
    return f"the gradient at {place}{form.removeprefix(GRADIENT)}"


def axes_of(place: Site) -> tuple[str, ...]:
    """Return the names of a site's axes: ``("B", "H", "T", "d")``."""
    return tuple(place.row.shape.replace("1|B", "B").split())


def computed(trace: Trace, run: str = "") -> Iterator[Quantity]:
    """Yield every site of a pass as it is."""
    for place in trace.sites:
        yield Quantity(place, trace[place], axes_of(place), run=run)


def parameters(trace: Trace) -> Iterator[Quantity]:
    """Yield what a sum may lack in every row: biases, by site, and positions."""
    if Site("wpe") in trace and trace[Site("wpe")].shape[0] == 1:
        yield Quantity(Site("wpe"), trace[Site("wpe")][0], ("T", "D"))
        yield from _shifted_positions(trace)
    for place, maker in trace.facts.makers.items():
        bias = getattr(maker, "bias", None)
        if isinstance(bias, Tensor) and bias.ndim == 1:
            yield Quantity(place, bias.detach(), ("D",), "bias")


def _shifted_positions(trace: Trace) -> Iterator[Quantity]:
    """Yield the embeddings of positions that are counted from elsewhere."""
    maker = trace.facts.makers.get(Site("wpe"))
    if not isinstance(maker, Lookup) or maker.ids is None:
        return
    for by in (1, -1, 2):
        places = maker.ids.flatten() + by
        if int(places.min()) >= 0 and int(places.max()) < len(maker.table):
            rows = maker.table.detach()[places]
            words = f"at positions {abs(by)} too {'far' if by > 0 else 'early'}"
            yield Quantity(Site("wpe"), rows, ("T", "D"), words)


def tables(trace: Trace) -> Iterator[Quantity]:
    """Yield the embedding tables, of which a pass looks up some rows."""
    for place, axis in ((Site("wpe"), "N"), (Site("wte"), "V")):
        maker = trace.facts.makers.get(place)
        if isinstance(maker, Lookup):
            yield Quantity(place, maker.table.detach(), (axis, "D"), "table")


def weights(trace: Trace) -> Iterator[Quantity]:
    """Yield the weights of the modules, each under the site that it makes."""
    for place, maker in trace.facts.makers.items():
        weight = getattr(maker, "weight", None)
        if isinstance(weight, Tensor):
            axes = ("in", "out") if weight.ndim == 2 else ("D",)
            yield Quantity(place, weight.detach(), axes, "weight")
