"""Reports of any size and content, made without running a model."""

import torch

from recon.auditing.findings import AuditReport, Finding, Judged
from recon.auditing.rules import RULES
from recon.baseline.document import Asked, Baseline, Setting, Site
from recon.baseline.findings import BaselineReport, Moved, rule
from recon.baseline.findings import Finding as BaselineFinding
from recon.compare import Check
from recon.facts import Environment
from recon.profiling.holders import Holder
from recon.profiling.hooks import HookCost, TapCost
from recon.profiling.leaks import Leak, LeakWatch, Round
from recon.profiling.memory import Memory, SiteBytes
from recon.profiling.results import AGAIN, BARE, Profile, Release
from recon.profiling.timing import Ratio
from recon.results import Report

ENVIRONMENT = Environment(
    architecture="GPT2LMHeadModel",
    torch="2.13.0",
    transformers="5.23.0",
    device="cpu",
    dtype=torch.float32,
    autocast=None,
    attention="sdpa",
    training=False,
    grad=False,
    threads=2,
)
COLUMNS = ("ln_1", "qkv", "z", "resid_mid", "mlp_pre", "mlp_post", "resid_post")
SITES = dict(zip(COLUMNS, COLUMNS, strict=True)) | {
    "qkv": "attn.qkv",
    "z": "attn.z",
    "mlp_pre": "mlp.pre",
    "mlp_post": "mlp.post",
}


def verification(depth: int, *damaged: tuple[int, str]) -> Report:
    """A verification of ``depth`` blocks that diverged at (block, identity)."""
    checks = [Check("embed", "embed", "certify", "exact", 0.0, 0)]
    for layer in range(depth):
        for identity in COLUMNS:
            bad = (layer, identity) in damaged
            checks.append(
                Check(
                    f"h.{layer}.{SITES[identity]}",
                    identity,
                    "certify",
                    "diverged" if bad else "rounding",
                    max_abs=0.5 if bad else 1e-6,
                    max_ulp=70_000 if bad else 3,
                    index=(0, 4, 17),
                    allowed=2e-6,
                    bound_ratio=2.5e5 if bad else 0.25,
                    sharpness=1e-5,
                )
            )
    checks.append(Check("logits", "logits", "certify", "unverified", reason="no bound"))
    return Report(ENVIRONMENT, ("certify",), (2, 9), depth, tuple(checks))


def audit(count: int, name: str = "blocks.{}.hook_resid_post") -> AuditReport:
    """An audit with ``count`` findings, each about a tensor of its own."""
    findings = tuple(
        Finding(
            rule=RULES[number % len(RULES)],
            message=f"`{name.format(number)}` is something else",
            severity=("error", "warning", "note")[number % 3],
            places=(name.format(number),),
            sites=(f"h.{number}.resid_post",),
            found=(f"h.{number}.mlp_out",),
            run="a batch of 3",
            mend="hook the block itself",
            evidence={"distance": 0.25, "rows": 3},
            traceback="Traceback:\n  line 1" if number % 7 == 0 else "",
        )
        for number in range(count)
    )
    tensors = tuple(
        Judged(
            name.format(number),
            ("wrong", "right", "unclaimed")[number % 3],
            f"h.{number % 12}.resid_post" if number % 3 < 2 else "",
            f"`{name.format(number)}` is h.{number}.mlp_out",
            (3, 7, 48),
            "float32",
        )
        for number in range(count)
    )
    return AuditReport(
        target="hooks.py:capture",
        model="random:tiny",
        environment=ENVIRONMENT,
        findings=findings,
        tensors=tensors,
        runs=("a batch of 3",),
    )


def profile(depth: int, *leaks: str, name: str = "h.{}.{}") -> Profile:
    """A profile of captures over ``depth`` blocks, each of those held by someone."""
    slots = [(layer, site) for layer in range(depth) for site in SITES.values()]
    kept = [
        SiteBytes(name.format(layer, site), 4096, 1024 if site == "attn.z" else 4096)
        for layer, site in slots
    ]
    holders = [Leak(Holder("global", (holder,)), 3, 12_288) for holder in leaks]
    return Profile(
        target="hooks.py:capture",
        model="random:tiny",
        environment=ENVIRONMENT,
        shape=(2, 9),
        depth=depth,
        times=(
            Ratio(BARE, 0.010, (0.009, 0.011), 1.0, 1.0, 1.0),
            Ratio(AGAIN, 0.010, (0.009, 0.011), 1.001, 0.99, 1.02),
            Ratio("hooks.py:capture", 0.013, (0.012, 0.014), 1.3, 1.25, 1.35),
        ),
        hooks=len(kept),
        hook=HookCost(2e-6, 3e-6, 1e-6),
        taps=(TapCost("h.*.attn", ("h.*.attn.z",), depth, 4e-5),),
        memory=Memory(tuple(kept), 4096 * len(kept), 10_000, 90_000, 70_000),
        release=Release(len(kept), 3 * len(leaks), 12_288 * len(leaks), None),
        watch=LeakWatch(tuple(Round(0, 0, 0, 0) for _ in range(3)), tuple(holders)),
        notes=("the pass ran without a cache",),
    )


def baseline(depth: int, changed: int | None = None, name: str = "h.{}.{}"):
    """A check of a baseline: rounding from h.1 on, changed in one block if asked."""
    names = [name.format(n, site) for n in range(depth) for site in SITES.values()]
    bad = set() if changed is None else {name.format(changed, "mlp.post")}
    start = len(SITES) + 2
    moved = tuple(
        Moved(
            site,
            "changed" if site in bad else "follows" if number else "rounding",
            1e-7 * (number + 1) * (1e5 if site in bad else 1),
            0.5 if not number else None,
            "all inputs are bit-equal" if not number else "its inputs moved",
        )
        for number, site in enumerate(names[start:])
    )
    findings = tuple(
        BaselineFinding(rule("RB101"), f"{site} changed, by far too much", (site,))
        for site in bad
    )
    then = _document(["embed", *names])
    return BaselineReport("b.json", then, then, moved, findings, ("torch 2.12 then",))


def _document(names: list[str]) -> Baseline:
    site = Site.model_construct(
        shape=[2, 9, 48], dtype="float32", digest="0" * 64, mean=0.25, rms=1.5,
        low=-4.0, high=5.0, projection=[], bound=1e-6, law="a sum", inputs=[],
        weights=[], holds="",
    )  # fmt: skip
    setting = Setting(
        recon="0", python="3.11", torch="2.13.0", transformers="5.23.0", machine="x86",
        device="cpu", threads=2, architecture="GPT2LMHeadModel", blocks=3,
        dtype="float32", autocast=None, attention="sdpa",
    )  # fmt: skip
    asked = Asked(name="bundled", dtype=None, attention=None, seed=0, device="cpu")
    return Baseline.model_construct(
        model=asked,
        environment=setting,
        source="bundled prompt",
        inputs={"input_ids": [[1, 2, 3]]},
        sites=dict.fromkeys(names, site),
        weights={},
    )
