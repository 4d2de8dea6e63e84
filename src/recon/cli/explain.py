"""``recon explain``: what a rule of an audit means, and all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from recon.cli import completing, streams
from recon.cli.ending import Traceback
from recon.cli.options import Json


def command(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="RULE",
            autocompletion=completing.rules,
            help="A rule's code or name, RC101 or wrong-site; without it, all are "
            "listed.",
        ),
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> None:
    """Explain a rule of recon audit: what it means, and how to mend the code."""
    from recon.auditing.rules import RULES, rule

    streams.require_writable(json)
    rules = RULES if word is None else (rule(word),)
    if json != "-":
        _show(word)
    if json is not None:
        from recon.report.json import rules_text

        streams.write(rules_text(rules), json)


def _show(word: str | None) -> None:
    """Show one page, as it is written where there is no terminal; or the list."""
    from recon.auditing.rules import RULES, rule
    from recon.report.rules import page, render_list, render_page

    console = streams.output()
    if word is None:
        streams.show(console, render_list(RULES))
    elif console.is_terminal:
        streams.show(console, render_page(rule(word)))
    else:
        streams.write(page(rule(word)), "-")
