"""A report for programs: JSON with a stable schema, described in docs/json.md.

Fields may be added within a ``schema_version``; none changes its meaning or goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from recon import __version__
from recon.baseline.document import Baseline, Setting
from recon.report.foreign import encodable, plain
from recon.report.rules import gravest_first, page
from recon.shapes import Ran, Strict

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged
    from recon.auditing.rules import Rule
    from recon.baseline.findings import BaselineReport
    from recon.compare import Check
    from recon.differences import Difference
    from recon.facts import Environment
    from recon.profiling.hooks import HookCost, TapCost
    from recon.profiling.leaks import Leak, LeakWatch, Slope
    from recon.profiling.memory import Memory
    from recon.profiling.results import Profile, Release
    from recon.profiling.timing import Ratio
    from recon.report.vocabulary import Vocabulary
    from recon.results import Report

Number = float | Literal["inf"]
# Words that are not recon's own.
Foreign = Annotated[str, BeforeValidator(encodable)]


class Inputs(Strict):
    """What the model ran on."""

    source: str = Field(description="Where the inputs came from, in words.")
    batch: int | None = Field(description="Rows, over all batches.")
    tokens: int | None = Field(description="Tokens of the longest row.")


class RunFields(Ran):
    """Where and with what the model ran; everything that may change its bits."""

    training: bool = Field(description="Whether dropout was on (train mode).")


class EnvironmentFields(RunFields):
    """Where and with what the model ran, and how deep it is."""

    blocks: int = Field(description="Number of transformer blocks.")


class HiddenStates(Strict):
    """The tuple of hidden states that the ledger rebuilds."""

    expected: int = Field(description="Entries: one for each block, and the last.")
    reconciled: int = Field(description="Entries whose check holds.")
    last: str = Field(description="What the last entry is, in a sentence.")


class Timing(Strict):
    """Wall-clock times after one warm-up pass; null where nothing was timed."""

    seconds: float | None = Field(description="Captured pass and all checks.")
    bare_seconds: float | None = Field(description="The same pass without capture.")
    ratio: float | None = Field(description="seconds over bare_seconds.")


class CheckFields(Strict):
    """One comparison."""

    site: str = Field(description="The site, or the returned tensor, that was checked.")
    identity: str = Field(description="The law that was checked: qkv, chain and so on.")
    level: str = Field(description="ledger, sketch, replay, certify or capture.")
    verdict: Literal["exact", "rounding", "diverged", "missing", "unverified"] = Field(
        description="Only exact and rounding pass."
    )
    max_abs: Number | None = Field(
        description='Largest absolute error, "inf" if it is not finite; null if '
        "nothing could be compared."
    )
    max_ulp: int | None = Field(
        description="Largest distance in units in the last place; null as for max_abs."
    )
    index: list[int] | None = Field(description="Where the largest error is.")
    reason: str = Field(description="Why it fails, if not by a difference; else empty.")
    bound_ratio: Number | None = Field(
        description="Largest error over its bound, at most 1 if it is rounding; null "
        "where nothing is bounded."
    )
    sharpness: Number | None = Field(
        description="Fault, relative to its row's root mean square, from which any one "
        "element is certain to be caught; null as for bound_ratio."
    )
    excluded: int = Field(description="Rows left out: they may attend to no key.")
    allowed: Number | None = Field(
        description="Error allowed at index; null: none at all."
    )


class Verification(Strict):
    """What ``recon verify --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["reconciled", "diverged"] = Field(
        description="reconciled only if there are checks and all pass."
    )
    recon: str = Field(description="Version of recon.")
    model: str = Field(description="The model as it was asked for.")
    inputs: Inputs
    environment: EnvironmentFields
    levels: list[str] = Field(description="Levels of proof that were asked for.")
    hidden_states: HiddenStates
    notes: list[str] = Field(description="What to know about the model or the run.")
    timing: Timing
    checks: list[CheckFields] = Field(description="Every check, shallowest first.")


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


class ApartFields(Strict):
    """One site in two runs."""

    site: str = Field(description="The site.")
    equal: bool = Field(description="Whether the two tensors are bit-equal.")
    max_abs: Number = Field(description="Largest absolute difference.")
    relative: Number = Field(
        description="Root mean square of the difference over that of the first run."
    )


class DifferenceFields(Strict):
    """What ``recon diff --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["equal", "rounding", "diverged", "unverified"] = Field(
        description="equal and rounding are right; the others are findings."
    )
    recon: str = Field(description="Version of recon.")
    names: list[str] = Field(description="The two runs as they were asked for.")
    conclusion: str = Field(description="What the difference is, in a sentence.")
    first: str | None = Field(description="First site that differs, or null.")
    sites: list[ApartFields] = Field(description="In order of computation.")
    certified: list[list[CheckFields] | None] = Field(
        description="Each run's own checks at level certify; null without weights."
    )


class FindingFields(Strict):
    """One cause, told once, and the places where it shows."""

    code: str = Field(description="The rule's code: RC101.")
    name: str = Field(description="The rule's name: wrong-site.")
    severity: Literal["error", "warning", "note"] = Field(
        description="How grave it is here, which may differ from the rule's usual."
    )
    counts: bool = Field(description="Whether it makes the verdict.")
    message: Foreign = Field(description="What is wrong, in a sentence.")
    places: list[Foreign] = Field(
        description="Names of the tensors or modules, as the code names them."
    )
    sites: list[Foreign] = Field(
        description="What those names promise, in the order of places; or empty."
    )
    found: list[Foreign] = Field(
        description="What the tensors really are, in the order of places; or empty."
    )
    run: Foreign = Field(description="The run in which it showed, or empty.")
    evidence: dict[str, int | float | str] = Field(
        description='Figures by name; "inf", "-inf" and "nan" are spelt out.'
    )
    mend: Foreign = Field(description="A way to mend it.")
    traceback: Foreign = Field(description="Of the audited code, where it raised.")


class JudgedFields(Strict):
    """One tensor that the code returned in the first run."""

    name: Foreign = Field(description="Its name, as the code has it.")
    status: Literal["right", "wrong", "unclaimed"] = Field(
        description="unclaimed: its name promises nothing that recon can read."
    )
    claim: Foreign = Field(description="The site that its name promises, or empty.")
    sentence: Foreign = Field(description="What it is.")
    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="Its dtype, float32 for one.")
    by: Literal["", "certify", "run"] = Field(
        description="What a capture was judged by where recon did not see it taken: "
        "certify, by the captures that the model makes it of, with a proven bound; "
        "run, by the model's own run. Else empty."
    )


class AuditFields(Strict):
    """What ``recon audit --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["clean", "findings"] = Field(
        description="clean if no finding counts."
    )
    recon: str = Field(description="Version of recon.")
    target: Foreign = Field(description="What was audited, as it was asked for.")
    file: Foreign = Field(description="The file that it is in, or empty.")
    line: int = Field(description="The line of the function in file; 0: not known.")
    model: Foreign = Field(description="The model as it was asked for.")
    environment: RunFields
    strict: bool = Field(description="Whether notes count, too.")
    ignored: int = Field(description="Findings left out on request.")
    seconds: float | None = Field(description="How long the audit took, or null.")
    runs: list[Foreign] = Field(description="The runs that were made.")
    findings: list[FindingFields] = Field(description="Gravest first, then by cause.")
    tensors: list[JudgedFields] = Field(description="Every tensor of the first run.")


class RuleFields(Strict):
    """One rule of an audit or of a baseline."""

    code: str = Field(description="Its code, which is stable: RC101.")
    name: str = Field(description="Its name: wrong-site.")
    severity: Literal["error", "warning", "note"] = Field(
        description="How grave a finding of it usually is."
    )
    meaning: str = Field(description="What a finding of it means.")
    mend: str = Field(description="How it is usually mended.")
    page: str = Field(description="Its page, in Markdown.")


class RulesFields(Strict):
    """What ``recon explain --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    rules: list[RuleFields] = Field(
        description="Those of audits first, each in the order of their codes."
    )


class MovedFields(Strict):
    """One site that is not bit-equal to the baseline's."""

    site: str = Field(description="The site.")
    kind: Literal["rounding", "follows", "weights", "changed", "unproven"] = Field(
        description="How it moved: rounding began here, it follows from what moved "
        "before, its weights differ, it changed, or its rounding is not proven."
    )
    distance: Number = Field(
        description='Estimated length of the difference over that of the tensor; "inf" '
        "where they cannot be compared."
    )
    ratio: Number | None = Field(
        description="Difference of the projections over what rounding allows; null "
        "where the inputs moved."
    )
    why: str = Field(description="Why it is of that kind.")


class BaselineFindingFields(Strict):
    """One thing that the gate does not let pass."""

    code: str = Field(description="The rule's code: RB101.")
    name: str = Field(description="The rule's name: site-changed.")
    message: str = Field(description="What was found, in a sentence.")
    places: list[str] = Field(description="Sites, weights or hooks, the first first.")
    mend: str = Field(description="What to do.")


class BaselineCheckFields(Strict):
    """What ``recon baseline check --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["equal", "rounding", "changed"] = Field(
        description="equal and rounding pass; changed if there is any finding."
    )
    recon: str = Field(description="Version of recon.")
    file: Foreign = Field(description="The baseline, as it was asked for.")
    model: Foreign = Field(description="The model as it was asked for.")
    conclusion: str = Field(description="What moved, in a sentence.")
    then: Setting = Field(description="Where and with what it was recorded.")
    now: Setting = Field(description="Where and with what it was checked.")
    equal: int = Field(description="Sites that are bit-equal.")
    moved: list[MovedFields] = Field(
        description="Other sites, in order of computation."
    )
    findings: list[BaselineFindingFields] = Field(
        description="First changed site first; what concerns no site comes last."
    )
    notes: list[str] = Field(description="What else is new, and lets the gate pass.")


class InfoFields(Strict):
    """What ``recon info --json`` and ``recon capture --json`` write."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    path: Foreign = Field(description="The file or directory.")
    kind: str = Field(description="What it is, in words.")
    facts: dict[str, str | int | bool | list[str] | None] = Field(
        description="What is in it, by name."
    )


class TimeFields(Strict):
    """One variant, interleaved with the others and compared with the bare pass."""

    name: Foreign = Field(description="What was timed.")
    seconds: float = Field(description="Its median time.")
    quartiles: list[float] = Field(description="Lower and upper quartile of its times.")
    ratio: float = Field(description="Median of the paired ratios to the bare pass.")
    interval: list[float] = Field(description="95% bootstrap interval of that median.")
    told: bool = Field(description="Whether it is outside the noise of the machine.")


class TapFields(Strict):
    """What recon's hooks on one kind of module spent in a pass."""

    place: str = Field(description="The module's path; * is the number of a block.")
    sites: list[str] = Field(description="The sites that these hooks see.")
    firings: int = Field(description="How often they fired.")
    seconds: float = Field(description="Spent in the hooks themselves, in all.")


class HookFields(Strict):
    """Seconds that one hook of recon takes on a module that does nothing."""

    to_register: float = Field(description="To register it.")
    to_fire: float = Field(description="To fire it.")
    to_remove: float = Field(description="To remove it.")


class SiteBytesFields(Strict):
    """What keeping one captured tensor takes."""

    site: Foreign = Field(description="Its site, or its name in what was returned.")
    held: int = Field(description="Bytes of its storage, unless an earlier one has it.")
    needed: int = Field(description="Bytes of its elements that no earlier one has.")
    shared_with: Foreign = Field(description="The earlier one, or empty.")


class AllocatorFields(Strict):
    """Figures of CUDA's allocator, in bytes."""

    allocated: int = Field(description="Alive with the captures, over what was.")
    peak: int = Field(description="The most in the pass, over what was before.")
    reserved: int = Field(description="Taken from the device.")


class MemoryFields(Strict):
    """Bytes of storages that a captured pass makes."""

    held: int = Field(description="Alive while the captures are, the output dropped.")
    needed: int = Field(description="The fewest that hold each captured element once.")
    ratio: float | None = Field(description="held over needed; null for no capture.")
    elsewhere: int = Field(description="Held besides captures: cache, mask, graph.")
    peak: int = Field(description="The most alive at a time in a captured pass.")
    peak_bare: int = Field(description="The same in a bare pass.")
    graph: int = Field(description="What autograd adds to a bare pass that is kept.")
    allocator: AllocatorFields | None = Field(description="Null without a GPU.")
    allocator_reason: str = Field(description="Why there is none, or empty.")
    sites: list[SiteBytesFields] = Field(description="Every capture.")


class ReleaseFields(Strict):
    """One pass, let go."""

    captured: int = Field(description="Storages alive with the captures.")
    alive: int = Field(description="Of those, alive when all was let go.")
    bytes: int = Field(description="Bytes of those.")
    resident: list[int] | None = Field(
        description="Size of the process with the captures, and without; or null."
    )


class SlopeFields(Strict):
    """Growth a round, with its 95% interval."""

    per_round: float = Field(description="Median slope of all pairs of rounds.")
    interval: list[float] = Field(description="Its 95% interval.")


class LeakFields(Strict):
    """What stayed, held in one way."""

    kind: str = Field(
        description="module, hook, global, local, traceback, graph, cycle or unknown."
    )
    path: list[Foreign] = Field(description="From what a person knows to the tensor.")
    count: int = Field(description="Storages or hooks.")
    bytes: int = Field(description="Bytes; 0 for a hook.")
    sentence: Foreign = Field(description="The same in words.")


class LeakWatchFields(Strict):
    """Rounds of attach, run, detach."""

    rounds: int = Field(description="How many.")
    bytes: SlopeFields
    hooks: SlopeFields
    objects: SlopeFields
    leaks: list[LeakFields] = Field(description="What stayed; the most bytes first.")


class ProfileFields(Strict):
    """What ``recon profile --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["clean", "leaks"] = Field(description="clean if nothing stayed.")
    recon: str = Field(description="Version of recon.")
    target: Foreign = Field(description="What was profiled.")
    model: str = Field(description="The model as it was asked for.")
    inputs: Inputs
    environment: EnvironmentFields
    noise: float = Field(description="How far the bare pass is from itself.")
    too_noisy: bool = Field(description="Whether times can tell anything here.")
    times: list[TimeFields] = Field(description="The bare pass first, then again.")
    hooks: int = Field(description="Hooks that one call makes.")
    hook: HookFields | None = Field(description="recon's own; null for a target.")
    taps: list[TapFields] = Field(description="Dearest first; empty for a target.")
    memory: MemoryFields
    release: ReleaseFields
    leak_watch: LeakWatchFields
    findings: list[Foreign] = Field(description="What is wrong, in sentences.")
    notes: list[Foreign] = Field(description="What to know about the figures.")
    seconds: float = Field(description="How long the profile took.")


DOCUMENTS: dict[str, type[BaseModel]] = {
    "verify": Verification,
    "sites": Sites,
    "diff": DifferenceFields,
    "audit": AuditFields,
    "profile": ProfileFields,
    "explain": RulesFields,
    "baseline": Baseline,
    "baseline-check": BaselineCheckFields,
    "info": InfoFields,
}


def schema_text(name: str) -> str:
    """Return the JSON schema of one command's output, as kept in docs/schema."""
    return _text(DOCUMENTS[name].model_json_schema())


def verification_text(report: Report, *, model: str, source: str) -> str:
    """Return a report as JSON."""
    rows, tokens = (*report.shape, None, None)[:2]
    return _document(
        Verification(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            model=model,
            inputs=Inputs(source=source, batch=rows, tokens=tokens),
            environment=_environment(report),
            levels=list(report.levels),
            hidden_states=_states(report),
            notes=list(report.notes),
            timing=_timing(report),
            checks=[_check(check) for check in report.checks],
        )
    )


def difference_text(found: Difference) -> str:
    """Return the difference of two runs as JSON."""
    reports = (found.first_report, found.second_report)
    return _document(
        DifferenceFields(
            schema_version="1",
            verdict=found.verdict,
            recon=__version__,
            names=list(found.names),
            conclusion=found.conclusion(),
            first=None if found.first is None else str(found.first.site),
            sites=[
                ApartFields(
                    site=str(apart.site),
                    equal=apart.equal,
                    max_abs=_number(apart.max_abs) or 0.0,
                    relative=_number(apart.relative) or 0.0,
                )
                for apart in found.sites
            ],
            certified=[
                None if report is None else [_check(check) for check in report.checks]
                for report in reports
            ],
        )
    )


def audit_text(report: AuditReport) -> str:
    """Return an audit as JSON."""
    return _document(
        AuditFields(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            target=report.target,
            file=report.file,
            line=report.line,
            model=report.model,
            environment=RunFields(**_run(report.environment)),
            strict=report.strict,
            ignored=report.ignored,
            seconds=report.seconds,
            runs=list(report.runs),
            findings=list(_findings(report)),
            tensors=[_judged(tensor) for tensor in report.tensors],
        )
    )


def baseline_text(report: BaselineReport) -> str:
    """Return a check of a baseline as JSON."""
    return _document(
        BaselineCheckFields(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            file=report.file,
            model=report.now.model.name,
            conclusion=report.conclusion(),
            then=report.then.environment,
            now=report.now.environment,
            equal=report.equal,
            moved=[
                MovedFields(
                    site=one.site,
                    kind=one.kind,
                    distance=_number(one.distance) or 0.0,
                    ratio=_number(one.ratio),
                    why=one.why,
                )
                for one in report.moved
            ],
            findings=[
                BaselineFindingFields(
                    code=one.rule.code,
                    name=one.rule.name,
                    message=one.message,
                    places=list(one.places),
                    mend=one.rule.mend,
                )
                for one in report.findings
            ],
            notes=list(report.notes),
        )
    )


def rules_text(rules: Iterable[Rule]) -> str:
    """Return rules, with their pages, as JSON."""
    return _document(
        RulesFields(
            schema_version="1",
            recon=__version__,
            rules=[RuleFields(**vars(rule), page=page(rule)) for rule in rules],
        )
    )


def vocabulary_text(listing: Vocabulary) -> str:
    """Return the sites of a model as JSON."""
    return _document(
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
    return _document(
        InfoFields(
            schema_version="1",
            recon=__version__,
            path=path,
            kind=kind,
            facts={encodable(name): _encodable(fact) for name, fact in facts.items()},
        )
    )


def profile_text(profile: Profile, *, model: str, source: str) -> str:
    """Return a profile as JSON."""
    rows, tokens = (*profile.shape, None, None)[:2]
    return _document(
        ProfileFields(
            schema_version="1",
            verdict=profile.verdict,
            recon=__version__,
            target=profile.target,
            model=model,
            inputs=Inputs(source=source, batch=rows, tokens=tokens),
            environment=_environment(profile),
            noise=profile.noise,
            too_noisy=profile.noisy,
            times=[_time(one, profile.noise) for one in profile.times],
            hooks=profile.hooks,
            hook=_hook(profile.hook),
            taps=[_tap(tap) for tap in profile.taps],
            memory=_memory(profile.memory),
            release=_release(profile.release),
            leak_watch=_leak_watch(profile.watch),
            findings=list(profile.findings),
            notes=list(profile.notes),
            seconds=profile.seconds,
        )
    )


def _time(one: Ratio, noise: float) -> TimeFields:
    return TimeFields(
        name=one.name,
        seconds=one.seconds,
        quartiles=list(one.quartiles),
        ratio=one.ratio,
        interval=[one.low, one.high],
        told=one.tells(noise),
    )


def _hook(cost: HookCost | None) -> HookFields | None:
    if cost is None:
        return None
    return HookFields(
        to_register=cost.register, to_fire=cost.fire, to_remove=cost.remove
    )


def _tap(tap: TapCost) -> TapFields:
    return TapFields(**vars(tap) | {"sites": list(tap.sites)})


def _memory(memory: Memory) -> MemoryFields:
    allocator = memory.allocator
    return MemoryFields(
        held=memory.held,
        needed=memory.needed,
        ratio=memory.ratio if memory.needed else None,
        elsewhere=memory.elsewhere,
        peak=memory.peak,
        peak_bare=memory.peak_bare,
        graph=memory.graph,
        allocator=None if allocator is None else AllocatorFields(**vars(allocator)),
        allocator_reason=memory.allocator_reason,
        sites=[SiteBytesFields(**vars(one)) for one in memory.sites],
    )


def _release(release: Release) -> ReleaseFields:
    resident = release.resident
    return ReleaseFields(
        captured=release.captured,
        alive=release.alive,
        bytes=release.nbytes,
        resident=None if resident is None else list(resident),
    )


def _leak_watch(watch: LeakWatch) -> LeakWatchFields:
    return LeakWatchFields(
        rounds=len(watch.rounds),
        bytes=_slope(watch.nbytes),
        hooks=_slope(watch.hooks),
        objects=_slope(watch.objects),
        leaks=[_leak(leak) for leak in watch.leaks],
    )


def _leak(leak: Leak) -> LeakFields:
    return LeakFields(
        kind=leak.holder.kind,
        path=list(leak.holder.path),
        count=leak.count,
        bytes=leak.nbytes,
        sentence=str(leak),
    )


def _encodable(fact: Any) -> Any:
    if isinstance(fact, list):
        return [_encodable(one) for one in fact]
    return encodable(fact) if isinstance(fact, str) else fact


def _slope(slope: Slope) -> SlopeFields:
    return SlopeFields(per_round=slope.per_round, interval=[slope.low, slope.high])


def _environment(of: Report | Profile) -> EnvironmentFields:
    return EnvironmentFields(**_run(of.environment), blocks=of.depth)


def _run(env: Environment) -> dict[str, Any]:
    return {
        "architecture": env.architecture,
        "torch": env.torch,
        "transformers": env.transformers,
        "device": env.device,
        "dtype": _dtype(env.dtype),
        "autocast": None if env.autocast is None else _dtype(env.autocast),
        "attention": env.attention,
        "training": env.training,
        "threads": env.threads,
    }


def _findings(report: AuditReport) -> Iterator[FindingFields]:
    counting = {id(finding) for finding in report.counting}
    for finding in gravest_first(report.findings):
        yield FindingFields(
            code=finding.rule.code,
            name=finding.rule.name,
            severity=finding.severity,
            counts=id(finding) in counting,
            message=finding.message,
            places=list(finding.places),
            sites=list(finding.sites),
            found=list(finding.found),
            run=finding.run,
            evidence=_evidence(finding),
            mend=finding.mend or finding.rule.mend,
            traceback=finding.traceback,
        )


def _evidence(finding: Finding) -> dict[str, int | float | str]:
    return {encodable(name): plain(value) for name, value in finding.evidence.items()}


def _judged(tensor: Judged) -> JudgedFields:
    return JudgedFields(
        name=tensor.name,
        status=tensor.status,
        claim=tensor.claim,
        sentence=tensor.sentence,
        shape=list(tensor.shape),
        dtype=_dtype(tensor.dtype),
        by=tensor.by,
    )


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _states(report: Report) -> HiddenStates:
    checks = [check for check in report.checks if check.identity == "hidden_states"]
    return HiddenStates(
        expected=report.depth + 1,
        reconciled=sum(check.passed for check in checks),
        last=report.last_state,
    )


def _timing(report: Report) -> Timing:
    took, bare = report.seconds, report.bare_seconds
    ratio = took / bare if took is not None and bare else None
    return Timing(seconds=took, bare_seconds=bare, ratio=ratio)


def _check(check: Check) -> CheckFields:
    return CheckFields(
        site=check.site,
        identity=check.identity,
        level=check.level,
        verdict=check.verdict,
        max_abs=_number(check.max_abs),
        max_ulp=check.max_ulp,
        index=None if check.index is None else list(check.index),
        reason=check.reason,
        bound_ratio=_number(check.bound_ratio),
        sharpness=_number(check.sharpness),
        excluded=check.excluded,
        allowed=_number(check.allowed),
    )


def _number(value: float | None) -> Number | None:
    """Spell infinity out: JSON has no such number."""
    if value is None or math.isfinite(value):
        return value
    return "inf"


def _document(document: BaseModel) -> str:
    return _text(document.model_dump(mode="json"))


def _text(plain: object) -> str:
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"
