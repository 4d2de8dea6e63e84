"""The command line, one file a command; torch is imported when a command runs.

``--help`` and bad usage must answer at once, so nothing imported up here may import
torch or transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any, NoReturn

import typer

from recon import __version__
from recon.cli import (
    audit,
    baseline,
    capture,
    completing,
    diff,
    ending,
    explain,
    info,
    plot,
    profile,
    sites,
    streams,
    verify,
)

app = typer.Typer(
    name="recon",
    epilog="Example: recon verify random:tiny --attn eager",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "verify",
    epilog="Example: recon verify gpt2 --text 'Paris is the capital of' --dtype"
    " bfloat16 --json report.json",
)(verify.command)
app.command(
    "audit",
    epilog="Example: recon audit hooks.py:capture --claim 'layer_{l}=h.{l}.resid_post'",
)(audit.command)
app.command("explain", epilog="Example: recon explain RC101")(explain.command)
app.command(
    "diff",
    epilog="Example: recon diff gpt2@attn=eager gpt2@attn=sdpa,dtype=bfloat16",
)(diff.command)
app.add_typer(baseline.app, name="baseline")
app.command(
    "profile",
    epilog="Example: recon profile random:gpt2 --target hooks.py:capture --plot p.svg",
)(profile.command)
app.command(
    "sites", epilog="Example: recon sites random:tiny --sites 'h.*.attn.{q,k,v}'"
)(sites.command)
app.command(
    "capture",
    epilog="Example: recon capture gpt2 --prompts prompts.txt --sites 'h.*.resid_post'"
    " --out captures",
)(capture.command)
app.command(
    "plot",
    epilog="Example: recon plot correlations --text 'A name is bound' --out matrix.png",
)(plot.command)
app.command("info", epilog="Example: recon info captures")(info.command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"recon {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Prove that captured GPT-2 activations are right.

    Exit codes: 0 reconciled or clean, 1 diverged or findings, 2 bad usage or input.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        # Nothing was verified: a script must not take this for a pass.
        raise typer.Exit(ending.USAGE)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 reconciled, 1 diverged, 2 bad usage or input.

    With ``arguments`` the process is the caller's: SystemExit is all that ends it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    streams.ARGUMENTS.set(given)

    def command() -> Any:
        with completing.with_colons():
            return app(given, prog_name="recon", standalone_mode=False)

    ours = arguments is None
    with ending.without_threads_of_others() if ours else nullcontext():
        sys.exit(ending.run(command, given))
