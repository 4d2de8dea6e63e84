"""``recon explain``: what a rule of an audit or a baseline means, and all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import completing, streams
from recon.cli.ending import Traceback
from recon.cli.options import Json

if TYPE_CHECKING:
    from recon.auditing.rules import Rule


def command(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="RULE",
            autocompletion=completing.every_rule,
            help="A rule's code or name, RC101 or wrong-site; without it, all are "
            "listed.",
        ),
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> None:
    """Explain a rule of recon audit or recon baseline: what it means, what to do."""
    from recon.auditing.rules import rule
    from recon.report.rules import EVERY

    streams.require_writable(json)
    rules = EVERY if word is None else (rule(word, EVERY),)
    if json != "-":
        _show(rules, listed=word is None)
    if json is not None:
        from recon.report.json import rules_text

        streams.write(rules_text(rules), json)


def _show(rules: Sequence[Rule], *, listed: bool) -> None:
    """Show one page, as it is written where there is no terminal; or the list."""
    from recon.report.rules import page, render_list, render_page

    console = streams.output()
    if listed:
        streams.show(console, render_list(rules))
    elif console.is_terminal:
        streams.show(console, render_page(rules[0]))
    else:
        streams.write(page(rules[0]), "-")
