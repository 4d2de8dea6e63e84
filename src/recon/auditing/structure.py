"""What was returned, as a whole: nothing, too much, or other names than before."""

from __future__ import annotations

from collections.abc import Iterator

from recon.auditing.calls import Call
from recon.auditing.claims import Reader
from recon.auditing.effects import finding
from recon.auditing.findings import Finding
from recon.auditing.numerals import numerals


def structure(
    call: Call, main: Call | None, reader: Reader | None, depth: int
) -> Iterator[Finding]:
    """Yield what is odd about what a call returned, compared with the ``main`` one."""
    yield from _nothing(call)
    yield from _not_seen(call, reader)
    if reader is not None:
        yield from _lists(call, reader, depth)
    if main is not None:
        yield from _keys(call, main)


def _nothing(call: Call) -> Iterator[Finding]:
    returned, run = call.returned, call.situation.name
    if returned.empty:
        first, more = returned.empty[0], len(returned.empty) - 1
        words = f"`{first}` holds nothing" if first else "the function returned nothing"
        words += f" (and {more} more so)" if more else ""
        yield finding("nothing-captured", words, places=returned.empty, run=run)
    if not returned.tensors and not returned.empty:
        kind = next(iter(returned.odd.values()), "")
        words = "the function returned no tensor that recon can judge"
        words += f"; it is {kind}" if kind else ""
        yield finding("nothing-captured", words, run=run)


def _not_seen(call: Call, reader: Reader | None) -> Iterator[Finding]:
    """Say at what recon does not look: no pass for a tensor that a site is promised."""
    returned = call.returned
    for name, kind in returned.odd.items() if returned.tensors else ():
        claim = None if reader is None else reader.read(name)
        promised = claim is not None and claim.readings and not claim.soft
        tensor = name in returned.unseen
        yield finding(
            "unclaimed",
            f"`{name}` is {kind}, at which recon does not look",
            places=[name],
            run=call.situation.name,
            severity="warning" if tensor and promised else None,
            mend="Return it as a plain tensor of real numbers." if tensor else "",
        )


def _lists(call: Call, reader: Reader, depth: int) -> Iterator[Finding]:
    for name, length in call.returned.lists.items():
        over_blocks = _layers(reader, f"{name}.0") != _layers(reader, f"{name}.1")
        if over_blocks and length not in (depth, depth + 1):
            words = (
                f"`{name}` has {length} entries; the model has {depth} blocks, and "
                f"{depth + 1} hidden states"
            )
            yield finding("wrong-count", words, places=[name], run=call.situation.name)


def _layers(reader: Reader, name: str) -> set[int | None]:
    readings = reader.read(name).readings
    return {one.site.layer for one in readings if not one.backward}


def _keys(call: Call, main: Call) -> Iterator[Finding]:
    before, now, run = main.returned, call.returned, call.situation.name
    if _by_row(main) & _by_row(call) or _counted(main, call):
        return  # there are as many as rows in the batch, or as tokens
    grown = [
        name
        for name, length in now.lists.items()
        if length > before.lists.get(name, length)
    ]
    longer = set(before.tensors) < set(now.tensors)
    if grown or longer:
        sizes = f"{len(before.tensors)} tensors at first, {len(now.tensors)} now"
        words = f"what the function returns grows with each call: {sizes}"
        yield finding("grows", words, places=grown or [""], run=run)
    elif set(now.tensors) != set(before.tensors):
        odd = sorted(set(now.tensors) ^ set(before.tensors))
        words = f"`{odd[0]}` is returned in some runs only ({len(odd)} such names)"
        yield finding("keys-vary", words, places=odd, run=run)


def _counted(main: Call, call: Call) -> bool:
    """Whether names differ in the numbers of rows or tokens only, as inputs do."""
    same = main.situation.inputs["input_ids"].shape
    if call.situation.inputs["input_ids"].shape == same:
        return False
    before, now = (
        {numerals(name).pattern for name in one.returned.tensors}
        for one in (main, call)
    )
    return before == now and now != set(call.returned.tensors)


def _by_row(call: Call) -> set[str]:
    """Return the names of lists that have an entry for each prompt."""
    rows = call.situation.rows
    return {name for name, length in call.returned.nests.items() if length == rows}
