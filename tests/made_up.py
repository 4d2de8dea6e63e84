"""Reports of any size and content, made without running a model."""

import torch

from recon.auditing.findings import AuditReport, Finding, Judged
from recon.auditing.rules import RULES
from recon.compare import Check
from recon.facts import Environment
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
