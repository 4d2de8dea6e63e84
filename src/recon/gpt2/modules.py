"""Where the pieces of a GPT-2 are: modules by site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import GPT2LMHeadModel, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block

from recon.errors import UnsupportedError
from recon.plan import Passage
from recon.sites import Site

# What each module of a block is given, and what it makes: an attention's by its kind.
_BLOCK = (
    ("", "resid_pre", "resid_post"),
    ("ln_1", "resid_pre", "ln_1"),
    ("attn", "ln_1", "attn_out"),
    ("attn.c_attn", "ln_1", "attn.qkv"),
    ("attn.c_proj", "attn.z", "attn.out"),
    ("attn.resid_dropout", "attn.out", "attn_out"),
    ("ln_cross_attn", "cross.resid_pre", "cross.ln"),
    ("crossattention", "cross.ln", "cross_out"),
    ("crossattention.q_attn", "cross.ln", "cross.q"),
    ("crossattention.c_proj", "cross.z", "cross.out"),
    ("crossattention.resid_dropout", "cross.out", "cross_out"),
    ("ln_2", "resid_mid", "ln_2"),
    ("mlp", "ln_2", "mlp_out"),
    ("mlp.c_fc", "ln_2", "mlp.pre"),
    ("mlp.act", "mlp.pre", "mlp.post"),
    ("mlp.c_proj", "mlp.post", "mlp.out"),
    ("mlp.dropout", "mlp.out", "mlp_out"),
)
# Models that were trained are often stripped of their dropouts.
_DROPOUTS = (nn.Dropout, nn.Identity)
HEADED = frozenset({"attn.z", "cross.z", "cross.q"})


def base(model: nn.Module) -> GPT2Model:
    """Return the GPT2Model inside a supported model.

    Raises UnsupportedError, naming the class, for anything else.
    """
    if isinstance(model, GPT2LMHeadModel):
        return model.transformer
    if isinstance(model, GPT2Model):
        return model
    name = type(model).__name__
    hint = ""
    # People hand in a model's name, too.
    modules: Callable[[], Iterable[nn.Module]] = getattr(model, "modules", tuple)
    inner = [m for m in modules() if isinstance(m, GPT2LMHeadModel | GPT2Model)]
    if inner:
        hint = f"; capture the {type(inner[0]).__name__} inside it instead"
    raise UnsupportedError(
        f"recon checks GPT2LMHeadModel and GPT2Model, found {name}{hint}"
    )


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of one model that recon looks at, by path.

    ``layers`` are the blocks as they were then: code may take some away in a pass.
    """

    model: PreTrainedModel
    body: GPT2Model
    prefix: str
    layers: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Parts:
        """Look into a supported model; raises UnsupportedError for another."""
        body = base(model)
        assert isinstance(model, PreTrainedModel)
        if problem := next(_oddities(model, body), ""):
            raise UnsupportedError(f"recon does not check this model: {problem}")
        prefix = "" if model is body else "transformer."
        return cls(model, body, prefix, tuple(body.h))

    @property
    def head(self) -> nn.Module | None:
        """The unembedding, where the model has one."""
        return self.model.lm_head if isinstance(self.model, GPT2LMHeadModel) else None

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield number and module of every block."""
        yield from enumerate(self.layers)

    def makers(self) -> Iterator[tuple[str, Site, nn.Module]]:
        """Yield path, site and module of everything that has weights of its own."""
        yield f"{self.prefix}wte", Site("wte"), self.body.wte
        yield f"{self.prefix}wpe", Site("wpe"), self.body.wpe
        for layer, block in self.blocks():
            for part, path in _block_makers(block):
                module = block.get_submodule(path)
                yield f"{self.prefix}h.{layer}.{path}", Site(part, layer), module
        yield f"{self.prefix}ln_f", Site("ln_f"), self.body.ln_f
        if self.head is not None:
            yield "lm_head", Site("logits"), self.head

    def passages(self) -> Iterator[Passage]:
        """Yield every module at which a site can be edited, and its sites."""
        body, last = self.body, Site("resid_post", len(self.layers) - 1)

        def passage(path: str, takes: Site | None, gives: Site) -> Passage:
            return Passage(self.prefix + path, body.get_submodule(path), takes, gives)

        for name, part in (("wte", "wte"), ("wpe", "wpe"), ("drop", "embed")):
            yield passage(name, None, Site(part))
        for layer, block in self.blocks():
            for path, takes, gives in _BLOCK:
                if not path or hasattr(block, path.split(".")[0]):
                    whole = f"h.{layer}.{path}".removesuffix(".")
                    yield passage(whole, Site(takes, layer), Site(gives, layer))
        yield passage("ln_f", last, Site("ln_f"))
        if self.head is not None:
            yield Passage("lm_head", self.head, Site("ln_f"), Site("logits"))

    def attentions(self) -> Iterator[tuple[str, Site, Any]]:
        """Yield path, the site of the update, and module of every attention."""
        for layer, block in self.blocks():
            path = f"{self.prefix}h.{layer}"
            yield f"{path}.attn", Site("attn_out", layer), block.attn
            if hasattr(block, "crossattention"):
                yield (
                    f"{path}.crossattention",
                    Site("cross_out", layer),
                    block.crossattention,
                )

    def frame(self) -> Iterator[tuple[str, nn.Module, tuple[type[nn.Module], ...]]]:
        """Yield path, module and possible kinds of everything without weights."""
        if self.model is not self.body:
            yield "", self.model, (GPT2LMHeadModel,)
        yield self.prefix.removesuffix("."), self.body, (GPT2Model,)
        yield f"{self.prefix}drop", self.body.drop, _DROPOUTS
        for layer, block in self.blocks():
            path = f"{self.prefix}h.{layer}"
            yield path, block, (GPT2Block,)
            yield f"{path}.mlp", block.mlp, (GPT2MLP,)
            yield f"{path}.mlp.dropout", block.mlp.dropout, _DROPOUTS
        for path, _, attention in self.attentions():
            yield path, attention, (GPT2Attention,)
            for name in ("attn_dropout", "resid_dropout"):
                yield f"{path}.{name}", getattr(attention, name), _DROPOUTS

    def dropouts(self) -> Iterator[tuple[Site, Any]]:
        """Yield the dropouts whose output is a site."""
        yield Site("embed"), self.body.drop
        for layer, block in self.blocks():
            yield Site("mlp_out", layer), block.mlp.dropout
        for _, place, attention in self.attentions():
            yield place, attention.resid_dropout


def _oddities(model: nn.Module, body: GPT2Model) -> Iterator[str]:
    """Say what keeps a GPT-2 from being one whose every step runs as a module."""
    if not len(body.h):
        yield "it has no block"
    for layer, block in enumerate(body.h):
        parts = {"": block, ".attn": None, ".mlp": None}
        if isinstance(block, GPT2Block):
            parts |= {".attn": block.attn, ".mlp": block.mlp}
        for (path, part), kind in zip(
            parts.items(), (GPT2Block, GPT2Attention, GPT2MLP), strict=True
        ):
            if not isinstance(part, kind):
                found = type(part).__name__
                yield f"h.{layer}{path} is a {found}, expected {kind.__name__}"
    for path, module in model.named_modules():
        if getattr(module, "inplace", False):
            yield (
                f"{path} writes into its own input (inplace=True), so that nothing "
                "shows what enters it; give the model with inplace=False"
            )
        if _compiled(module):
            yield (
                f"{path or 'it'} is compiled, and compiled code calls no hooks; "
                "give the model as it was before compile()"
            )


def _compiled(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    whole = getattr(module, "_compiled_call_impl", None) is not None
    return whole or hasattr(forward, "_torchdynamo_orig_callable")


def _block_makers(block: Any) -> Iterator[tuple[str, str]]:
    yield "ln_1", "ln_1"
    yield "attn.qkv", "attn.c_attn"
    yield "attn.out", "attn.c_proj"
    if hasattr(block, "crossattention"):
        yield "cross.ln", "ln_cross_attn"
        yield "cross.q", "crossattention.q_attn"
        yield "cross.kv", "crossattention.c_attn"
        yield "cross.out", "crossattention.c_proj"
    yield "ln_2", "ln_2"
    yield "mlp.pre", "mlp.c_fc"
    yield "mlp.post", "mlp.act"
    yield "mlp.out", "mlp.c_proj"
