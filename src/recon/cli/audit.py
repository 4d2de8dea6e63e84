"""``recon audit``: judge captures that someone else's code made."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from recon.cli import completing, streams
from recon.cli.ending import CLEAN, FINDINGS, Traceback
from recon.cli.options import (
    Attention,
    Device,
    Html,
    InputIds,
    Json,
    ModelOption,
    Text,
    ToDtype,
)
from recon.cli.starting import load, silence_libraries
from recon.deadline import require_seconds
from recon.errors import UsageError
from recon.report.foreign import visible

if TYPE_CHECKING:
    from torch import Tensor

    from recon.auditing import vocabularies
    from recon.auditing.findings import AuditReport
    from recon.cli.options import Attn, Dtype
    from recon.models import Loaded

Effort: TypeAlias = Literal["quick", "default", "thorough"]
Tell: TypeAlias = Callable[[str, int, int], None]


class Names(StrEnum):
    """The vocabularies in which the code may name its tensors."""

    auto = "auto"
    recon = "recon"
    hf = "hf"
    transformer_lens = "transformer-lens"
    nnsight = "nnsight"
    torchlens = "torchlens"
    pyvene = "pyvene"


@dataclass(frozen=True)
class Run:
    """The model, and what it runs on."""

    model: str
    dtype: Dtype | None
    attn: Attn | None
    device: str
    seed: int
    text: str | None
    input_ids: Path | None

    def load(self) -> Loaded:
        """Load the model."""
        return load(
            self.model,
            dtype=self.dtype,
            attn=self.attn,
            device=self.device,
            seed=self.seed,
        )

    def inputs(self, loaded: Loaded) -> dict[str, Tensor] | None:
        """Return the inputs that were asked for; None: the audit chooses."""
        if self.text is None and self.input_ids is None:
            return None
        from recon.inputs import batches

        asked = batches(loaded, text=self.text, ids_file=self.input_ids)
        return next(asked).inputs


@dataclass(frozen=True)
class Wanted:
    """How to read the names, and what to look for."""

    claims: Mapping[str, str]
    names: vocabularies.Names
    ignore: Sequence[str]
    strict: bool
    effort: Effort
    timeout: float | None


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="FILE.py:FUNCTION, package.module:FUNCTION or a file of captures: "
            ".safetensors, .npz, .pt, .pth.",
        ),
    ],
    model: ModelOption = "bundled",
    text: Text = None,
    input_ids: InputIds = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SITE",
            help="What a name promises: 'layer_{l}=h.{l}.resid_post'; may be repeated.",
        ),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='The same from TOML: "layer_{l}" = "...".'),
    ] = None,
    names: Annotated[
        Names, typer.Option(help="The vocabulary of the names; auto: any of them.")
    ] = Names.auto,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            autocompletion=completing.rules,
            help="Leave this rule out, by code or name; repeatable.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer runs, and quicker.")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="More runs, and slower ones.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Notes count as findings, too.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Stop a call that takes longer; without it, two minutes or the time "
            "of a thousand passes.",
        ),
    ] = None,
    dtype: ToDtype = None,
    attn: Attention = None,
    device: Device = "cpu",
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, metavar="N", help="For random weights."),
    ] = 0,
    json: Json = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write JUnit XML.")
    ] = None,
    sarif: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write SARIF 2.1.0.")
    ] = None,
    html: Html = None,
    traceback: Traceback = False,
) -> None:
    """Judge code that captures activations: is each tensor what its name says?

    FUNCTION(model, input_ids) returns a mapping of names to tensors. Says also what a
    wrong tensor really is, and what the code did to the model.

    Exit codes: 0 clean, 1 findings, 2 bad usage or input.
    """
    if text is not None and input_ids is not None:
        raise UsageError("give one of --text and --input-ids")
    outputs = {"--json": json, "--junit": junit, "--sarif": sarif, "--html": html}
    streams.require_distinct(outputs)
    require_seconds(timeout)
    wanted = Wanted(
        claims=_claims(claim or [], claims),
        names=names.value,
        ignore=_codes(ignore or []),
        strict=strict,
        effort=_effort(quick, thorough),
        timeout=timeout,
    )
    run = Run(model, dtype, attn, device, seed, text, input_ids)
    silence_libraries()

    from recon.target import is_captures

    judge = _audit_captures if is_captures(target) else _audit_function
    report = judge(target, run, wanted)
    _show(report, outputs)
    raise typer.Exit(CLEAN if report.verdict == "clean" else FINDINGS)


# -- what was asked for --------------------------------------------------------


def _effort(quick: bool, thorough: bool) -> Effort:
    if quick and thorough:
        raise UsageError("give one of --quick and --thorough")
    return "quick" if quick else "thorough" if thorough else "default"


def _codes(words: Sequence[str]) -> tuple[str, ...]:
    from recon.auditing.rules import rule

    return tuple(rule(word).code for word in words)


def _claims(given: Sequence[str], file: Path | None) -> dict[str, str]:
    """Read what names promise; those of the command line replace those of the file."""
    claims: dict[str, str] = {}
    for words in given:
        name, _, site = (part.strip() for part in words.rpartition("="))
        if not name or not site:
            raise UsageError(
                f"--claim {words!r}: expected NAME=SITE, "
                "layer_{l}=h.{l}.resid_post for one"
            )
        if claims.setdefault(name, site) != site:
            raise UsageError(f"--claim: {name!r} is claimed to be two sites")
    return (_claims_of(file) if file is not None else {}) | claims


def _claims_of(file: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--claims {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f'--claims {file}: no TOML: {error}; expected lines of "name" = "site", '
            "names with braces in quotes"
        ) from error
    return dict(_flat(table, str(file)))


def _flat(
    table: Mapping[str, Any], file: str, above: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield names and sites; TOML takes a dot in a name without quotes for a table."""
    for key, value in table.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            yield from _flat(value, file, f"{name}.")
        elif isinstance(value, str):
            yield name, value
        else:
            raise UsageError(f"--claims {file}: {name} is {value!r}; expected a site")


# -- the audit -----------------------------------------------------------------


def _audit_function(target: str, run: Run, wanted: Wanted) -> AuditReport:
    """Import the function and audit it; what it prints goes to stderr."""
    from recon.target import load_function

    with streams.stdout_is_stderr(), load_function(target, wanted.timeout) as found:
        from recon.auditing.session import audit

        loaded = run.load()
        inputs = run.inputs(loaded)
        with _progress() as progress:
            report = audit(
                found.function,
                loaded.model,
                inputs=inputs,
                claims=wanted.claims,
                names=wanted.names,
                ignore=wanted.ignore,
                effort=wanted.effort,
                strict=wanted.strict,
                timeout=wanted.timeout,
                target=target,
                model_name=loaded.name,
                progress=progress,
            )
    return replace(report, file=found.file, line=found.line)


def _audit_captures(target: str, run: Run, wanted: Wanted) -> AuditReport:
    """Audit saved tensors, on the inputs that were given or saved along with them."""
    from recon.auditing.session import audit_captures
    from recon.input_files import take_inputs
    from recon.target import load_tensors

    if wanted.effort != "default":
        raise UsageError(
            f"{target}: --quick and --thorough choose runs; captures are not run"
        )
    if wanted.timeout is not None:
        raise UsageError(f"{target}: --timeout is for calls; captures are not run")
    tensors = load_tensors(Path(target))
    own = take_inputs(tensors)
    loaded = run.load()
    inputs = run.inputs(loaded)
    if inputs is None:
        inputs = {name: ids.to(loaded.model.device) for name, ids in own.items()}
    if not inputs:
        raise UsageError(
            f"{target}: which inputs are these captures of? give --input-ids or --text"
        )
    report = audit_captures(
        tensors,
        loaded.model,
        inputs=inputs,
        claims=wanted.claims,
        names=wanted.names,
        ignore=wanted.ignore,
        strict=wanted.strict,
        target=target,
        model_name=loaded.name,
    )
    return replace(report, file=target)


@contextmanager
def _progress() -> Iterator[Tell]:
    """Yield what tells a bar on stderr: what is being done, how far, of how much."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
    )

    what = TextColumn("auditing: {task.description}", markup=False)
    spinner = SpinnerColumn(streams.spinner())
    columns = spinner, what, BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=streams.progress(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(doing: str, done: int, total: int) -> None:
            bar.update(task, description=visible(doing), completed=done, total=total)

        yield tell


def _show(report: AuditReport, outputs: Mapping[str, str | None]) -> None:
    from recon.report.audit import render

    if "-" not in outputs.values():
        console = streams.output()
        streams.show(console, render(report, console=console))
    for option, place in outputs.items():
        if place is not None:
            streams.write(_text(report, option), place, option)


def _text(report: AuditReport, option: str) -> str:
    """Return the report in the format that an option asks for."""
    from recon.report.html import audit_html
    from recon.report.json import audit_text
    from recon.report.junit import junit_text
    from recon.report.sarif import sarif_text

    if option == "--html":
        return audit_html(report, again=streams.command_line())
    texts = {"--json": audit_text, "--junit": junit_text, "--sarif": sarif_text}
    return texts[option](report)
