"""What is a tensor, up to rounding? One known quantity, a multiple, a sum of two.

Each quantity is projected on a few random directions of its last axis. Distances
between projections tell which of all sums and differences come close; only those are
formed in full. The search costs inner products of short vectors, not of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recon.auditing.quantities import Quantity
from recon.ops import merge_heads

_DIRECTIONS = 4
# What rounding can do to a short computation, as a multiple of the dtype's epsilon,
# relative to the root mean square. docs/audit.md says how it was measured.
_ROUNDINGS = 64.0
# Another implementation rounds differently all along.
_FOREIGN = 16.0
_PAIRS_TRIED = 6
# A remainder is recognised only if rounding can change little of it.
_CLEAR = 0.05
# Masks add the lowest number of a dtype; -6.5e4 in float16 is not beyond all doubt.
_MASKED = 1e30
# Fewer numbers than these are a multiple, or a sum, of something by chance; a single
# one is the mean, or the largest, of something.
FEWEST = 4


@dataclass(frozen=True)
class Near:
    """What explains a tensor up to rounding: words, the quantities, and the distance.

    ``distance`` is the root mean square of the difference over that of the tensor;
    ``how`` is ``same``, ``scaled``, ``sum``, or ``nearest`` where nothing explains it.
    """

    how: str
    words: str
    quantities: tuple[Quantity, ...]
    distance: float


def allowance(dtype: torch.dtype, *, foreign: bool = False) -> float:
    """Return how far ``apart`` rounding alone may put two tensors of a dtype.

    More where one is of a ``foreign`` implementation, whose passes recon did not see.
    """
    return _ROUNDINGS * torch.finfo(dtype).eps * (_FOREIGN if foreign else 1.0)


def distance(found: Tensor, known: Tensor) -> float:
    """Return the root mean square of the difference over that of ``found``."""
    size = float(_tame(found).norm())
    gap = float((_tame(found) - _tame(known)).norm())
    return gap / size if size else gap


def apart(found: Tensor, known: Tensor) -> float:
    """Return the largest difference over the root mean square of ``found``."""
    values = _tame(found)
    size = float(values.square().mean().sqrt())
    gap = float((values - _tame(known)).abs().max())
    return gap / size if size else gap


def _tame(tensor: Tensor) -> Tensor:
    """Return float64 with zeros for what a mask put beyond all bounds, and for NaN."""
    values = torch.nan_to_num(tensor.detach().double().cpu(), posinf=0.0, neginf=0.0)
    return values.masked_fill(values.abs() > _MASKED, 0.0)


@dataclass
class Family:
    """Quantities of one shape, with their projections; built when first asked for."""

    quantities: list[Quantity]
    tensors: list[Tensor]
    _rows: Tensor | None = field(default=None, repr=False)
    _gram: Tensor | None = field(default=None, repr=False)

    def rows(self) -> Tensor:
        """Return a projection a row (float64)."""
        if self._rows is None:
            self._rows = torch.stack([projected(t) for t in self.tensors])
        return self._rows

    def gram(self) -> Tensor:
        """Return all inner products of the projections."""
        if self._gram is None:
            self._gram = self.rows() @ self.rows().T
        return self._gram


def projected(tensor: Tensor) -> Tensor:
    """Return the products of the last axis with fixed random directions, flat."""
    width = tensor.shape[-1] if tensor.ndim else 1
    generator = torch.Generator().manual_seed(width)
    directions = torch.randn(
        width, _DIRECTIONS, generator=generator, dtype=torch.float64
    )
    return (_tame(tensor).reshape(-1, width) @ directions).reshape(-1)


def merged(tensor: Tensor, axes: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Write the heads of a ``B H T d`` tensor side by side."""
    if axes == ("B", "H", "T", "d"):
        return merge_heads(tensor), ("B", "T", "D")
    return tensor, axes


class Neighbourhood:
    """Every quantity of a pass, by shape; answers what a tensor is, up to rounding."""

    def __init__(
        self,
        quantities: Iterable[Quantity],
        terms: Iterable[Quantity] = (),
        *,
        sums: bool = True,
    ) -> None:
        self._sums = sums
        self._families: dict[tuple[int, ...], Family] = {}
        self._terms = list(terms)
        for one in quantities:
            tensor, _ = merged(one.tensor, one.axes)
            shape = tuple(tensor.squeeze().shape)
            family = self._families.setdefault(shape, Family([], []))
            family.quantities.append(one)
            family.tensors.append(tensor.squeeze())
        self._with_terms: set[tuple[int, ...]] = set()

    def explain(
        self,
        found: Tensor,
        allowed: float,
        prefer: Callable[[Quantity], bool] = lambda one: False,
    ) -> Near | None:
        """Say what a tensor is up to ``allowed``; else what it is nearest to.

        Among equally good answers those with a preferred quantity win. None where
        nothing has the shape, and where there are too few numbers to tell.
        """
        target = found.squeeze()
        family = self._family(tuple(target.shape))
        if family is None or not family.quantities:
            return None
        aim = projected(target)
        single = self._single(family, target, aim, allowed, prefer)
        if target.numel() < FEWEST:
            few = single if single.how == "same" else replace(single, how="nearest")
            return few if target.numel() > 1 else None
        if single.how != "nearest" or not self._sums:
            return single
        pair = self._pair(family, target, aim, allowed, prefer)
        return pair or self._rest(family, target, single, allowed) or single

    def _family(self, shape: tuple[int, ...]) -> Family | None:
        family = self._families.get(shape)
        if family is not None and shape not in self._with_terms:
            self._with_terms.add(shape)
            for term in self._terms:
                if shape and term.tensor.shape == shape[-term.tensor.ndim :]:
                    family.quantities.append(term)
                    family.tensors.append(term.tensor.expand(shape))
        return family

    def _single(
        self,
        family: Family,
        target: Tensor,
        aim: Tensor,
        allowed: float,
        prefer: Callable[[Quantity], bool],
    ) -> Near:
        rows = family.rows()
        gaps = (rows - aim).square().sum(1)
        sizes = rows.square().sum(1).clamp_min(1e-300)
        factors = rows @ aim / sizes
        scaled = (rows * factors[:, None] - aim).square().sum(1)
        best = self._best(family, gaps, prefer)
        gap = distance(target, family.tensors[best])
        if apart(target, family.tensors[best]) <= allowed:
            one = family.quantities[best]
            return Near("same", one.label, (one,), gap)
        likely = self._best(family, scaled, prefer)
        factor = float(factors[likely])
        one, tensor = family.quantities[likely], family.tensors[likely]
        if factor and apart(target, tensor.double() * factor) <= allowed:
            words = f"{_factor(factor)} times {one.label}"
            return Near("scaled", words, (one,), gap)
        nearest = family.quantities[best]
        return Near("nearest", nearest.label, (nearest,), gap)

    @staticmethod
    def _best(family: Family, gaps: Tensor, prefer: Callable[[Quantity], bool]) -> int:
        """Return the place of the smallest gap; of equal ones, a preferred one."""
        least = float(gaps.min())
        near = (gaps <= least * 4 + 1e-300).nonzero().flatten().tolist()
        plain = [n for n in near if not family.quantities[n].form]
        for choice in (
            [n for n in near if prefer(family.quantities[n])],
            plain,
            near,
        ):
            if choice:
                return int(min(choice, key=lambda n: float(gaps[n])))
        return int(gaps.argmin())

    def _rest(
        self, family: Family, target: Tensor, nearest: Near, allowed: float
    ) -> Near | None:
        """Find what the tensor lacks, or has too much of, beside what it is nearest to.

        So sums of three terms are found of which the nearest quantity holds two.
        """
        (one,) = nearest.quantities
        place = next(n for n, q in enumerate(family.quantities) if q is one)
        rest = target.double() - family.tensors[place].double()
        size, whole = float(_tame(rest).norm()), float(_tame(target).norm())
        if not size or size > whole or not bool(torch.isfinite(rest).all()):
            return None
        allowed *= 2 * whole / size  # the roundings are those of the whole
        if allowed > _CLEAR:
            return None
        left = self._single(family, rest, projected(rest), allowed, lambda q: False)
        if left.how == "nearest":
            return None
        words = f"{one.label} plus {left.words}".replace("plus -1 times", "less")
        return Near("sum", words, (one, *left.quantities), left.distance)

    def _pair(
        self,
        family: Family,
        target: Tensor,
        aim: Tensor,
        allowed: float,
        prefer: Callable[[Quantity], bool],
    ) -> Near | None:
        """Find two quantities whose sum or difference is the tensor."""
        rows, gram = family.rows(), family.gram()
        onto, sizes = rows @ aim, gram.diagonal()
        total = float(aim @ aim)
        plain = torch.tensor([not one.form for one in family.quantities])
        base = total + sizes[:, None] + sizes[None, :] - 2 * onto[:, None]
        tries: list[tuple[float, int, int, int]] = []
        for sign in (1, -1):
            gaps = base - sign * 2 * onto[None, :] + sign * 2 * gram
            # At least one of the two is a site as it is; a pair is found once.
            usable = plain[:, None] | plain[None, :]
            usable = usable.triu(1) if sign > 0 else usable.fill_diagonal_(False)
            gaps = gaps.masked_fill(~usable, float("inf"))
            tried = min(_PAIRS_TRIED, gaps.numel())
            for place in gaps.flatten().topk(tried, largest=False).indices.tolist():
                first, second = divmod(place, len(rows))
                tries.append((float(gaps[first, second]), first, second, sign))
        hits = []
        for _, first, second, sign in sorted(tries):
            made = family.tensors[first].double()
            made = made + sign * family.tensors[second].double()
            gap = distance(target, made)
            within = allowed * _cancellation(family, first, target)
            # Where the terms' rounding is as large as the sum, they explain anything.
            if within <= _CLEAR and apart(target, made) <= within:
                both = (family.quantities[first], family.quantities[second])
                word = "plus" if sign > 0 else "less"
                words = f"{both[0].label} {word} {both[1].label}"
                hits.append(Near("sum", words, both, gap))
        preferred = [h for h in hits if any(prefer(q) for q in h.quantities)]
        return next(iter([*preferred, *hits]), None)


def _cancellation(family: Family, term: int, total: Tensor) -> float:
    """Return how much larger the terms of a sum are than the sum: errors grow so."""
    size = float(_tame(total).norm())
    return max(1.0, 2 * float(_tame(family.tensors[term]).norm()) / size) if size else 1


def _factor(value: float) -> str:
    """Write a factor, as a root or a fraction of a small number where it is one."""
    for number in range(2, 4097):
        for words, known in (
            (f"{number}", float(number)),
            (f"1/{number}", 1 / number),
            (f"sqrt({number})", number**0.5),
            (f"1/sqrt({number})", number**-0.5),
        ):
            if abs(value / known - 1) < 1e-5:
                return words
    return f"{value:.6g}"
