"""What a notebook shows of an object of recon's; the top package says how."""

from __future__ import annotations

from collections.abc import Callable


class Displayed:
    """Base of everything that a notebook shows as a fragment of HTML.

    ``draws`` makes the fragment. It is set from above, since what is shown lies below
    what shows it; as long as none is set, a notebook shows the ``repr``.
    """

    draws: Callable[[object], str] | None = None

    def _repr_html_(self) -> str | None:
        draws = Displayed.draws
        return None if draws is None else draws(self)
