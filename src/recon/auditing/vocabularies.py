"""The names that other libraries give to the sites of GPT-2, and what they promise.

A name of a library has one meaning, and for some sites a few forms: what the library
shows instead, by design (``designs`` says what each form is).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.sites import BLOCK, PARTS, Site

Names: TypeAlias = Literal[
    "auto", "recon", "hf", "transformer-lens", "nnsight", "torchlens", "pyvene"
]
NAMES: tuple[Names, ...] = (
    "auto", "recon", "hf", "transformer-lens", "nnsight", "torchlens", "pyvene",
)  # fmt: skip

# What a name promises: a part, a block, and the forms that are as good, usual first.
Promise: TypeAlias = tuple[Site, tuple[str, ...]]


def read(name: str, names: Names) -> tuple[Promise, ...] | None:
    """Return what a name means to a library of its own.

    None: no such name there; an empty tuple: a name that promises no activation. Module
    paths, which Hugging Face, nnsight and torchlens share, are not read here.
    """
    for library, reader in _READERS.items():
        if names in ("auto", library) and (found := reader(name)) is not None:
            return found
    return None


def speaks(names: Names, spelling: str, place: Site) -> bool:
    """Whether a vocabulary has this spelling for a site."""
    if names == "auto":
        return True
    if names == "recon":
        return spelling == str(place)
    ours = (str(place), place.lens)
    return names in _PATHS and place.hf != "" and (
        spelling not in ours or spelling in (place.hf, place.hf.partition(".")[2])
    )  # fmt: skip


# Vocabularies of module paths, which the model itself gives.
_PATHS = ("hf", "nnsight", "torchlens", "pyvene")


def family(name: str) -> str:
    """Return a name without its numbers, if it is torchlens's label of an operation."""
    found = _LABEL.fullmatch(name)
    return found[1] if found and found[1] in _operations() else ""


# -- TransformerLens -----------------------------------------------------------

# Names as its bridge (4.3) has them; {l} is the block. Ids and positions, which are no
# activations, promise nothing.
_LENS: Mapping[str, str] = {
    "embed.hook_in": "",
    "embed.hook_out": "wte",
    "hook_embed": "wte",
    "pos_embed.hook_in": "",
    "pos_embed.hook_out": "wpe",
    "hook_pos_embed": "wpe",
    "blocks.{l}.hook_in": "resid_pre",
    "blocks.{l}.hook_resid_pre": "resid_pre",
    "blocks.{l}.ln1.hook_in": "resid_pre",
    "blocks.{l}.ln1.hook_scale": "ln_1 scale",
    "blocks.{l}.ln1.hook_normalized": "ln_1",
    "blocks.{l}.ln1.hook_out": "ln_1",
    "blocks.{l}.attn.hook_in": "ln_1",
    "blocks.{l}.attn.q.hook_in": "ln_1",
    "blocks.{l}.attn.k.hook_in": "ln_1",
    "blocks.{l}.attn.v.hook_in": "ln_1",
    "blocks.{l}.attn.qkv.hook_in": "ln_1",
    "blocks.{l}.attn.qkv.hook_out": "attn.qkv",
    "blocks.{l}.attn.q.hook_out": "attn.q",
    "blocks.{l}.attn.hook_q": "attn.q",
    "blocks.{l}.attn.k.hook_out": "attn.k",
    "blocks.{l}.attn.hook_k": "attn.k",
    "blocks.{l}.attn.v.hook_out": "attn.v",
    "blocks.{l}.attn.hook_v": "attn.v",
    "blocks.{l}.attn.hook_attn_scores": "attn.scores",
    "blocks.{l}.attn.hook_pattern": "attn.pattern",
    "blocks.{l}.attn.o.hook_in": "attn.z",
    "blocks.{l}.attn.hook_z": "attn.z",
    "blocks.{l}.attn.hook_result": "attn.out by head",
    "blocks.{l}.attn.o.hook_out": "attn.out",
    "blocks.{l}.attn.hook_hidden_states": "attn.out",
    "blocks.{l}.attn.hook_out": "attn_out",
    "blocks.{l}.hook_attn_out": "attn_out",
    "blocks.{l}.hook_attn_in": "resid_pre each head",
    "blocks.{l}.hook_q_input": "resid_pre each head",
    "blocks.{l}.hook_k_input": "resid_pre each head",
    "blocks.{l}.hook_v_input": "resid_pre each head",
    "blocks.{l}.attn.hook_attn_in": "resid_pre each head",
    "blocks.{l}.attn.hook_q_input": "resid_pre each head",
    "blocks.{l}.attn.hook_k_input": "resid_pre each head",
    "blocks.{l}.attn.hook_v_input": "resid_pre each head",
    "blocks.{l}.ln2.hook_in": "resid_mid",
    "blocks.{l}.hook_resid_mid": "resid_mid",
    "blocks.{l}.hook_mlp_in": "resid_mid",
    "blocks.{l}.ln2.hook_scale": "ln_2 scale",
    "blocks.{l}.ln2.hook_normalized": "ln_2",
    "blocks.{l}.ln2.hook_out": "ln_2",
    "blocks.{l}.mlp.hook_in": "ln_2",
    "blocks.{l}.mlp.in.hook_in": "ln_2",
    "blocks.{l}.mlp.in.hook_out": "mlp.pre",
    "blocks.{l}.mlp.hook_pre": "mlp.pre",
    "blocks.{l}.mlp.out.hook_in": "mlp.post",
    "blocks.{l}.mlp.hook_post": "mlp.post",
    "blocks.{l}.mlp.out.hook_out": "mlp.out",
    "blocks.{l}.mlp.hook_out": "mlp_out",
    "blocks.{l}.hook_mlp_out": "mlp_out",
    "blocks.{l}.hook_out": "resid_post",
    "blocks.{l}.hook_resid_post": "resid_post",
    "ln_final.hook_in": "last resid_post",
    "ln_final.hook_scale": "ln_f scale",
    "ln_final.hook_normalized": "ln_f",
    "ln_final.hook_out": "ln_f",
    "unembed.hook_in": "ln_f",
    "unembed.hook_out": "logits",
    "hook_unembed": "logits",
}
_CENTERED = (
    "wte",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn.out",
    "attn_out",
    "mlp.out",
    "mlp_out",
    "logits",
)
# Processed weights: LayerNorms folded, what writes to the stream and the unembedding
# centred, the bias of the values moved behind attention.
_FORMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_CENTERED, ("", "centered")),
    **dict.fromkeys(("ln_1", "ln_2", "ln_f"), ("", "normalized")),
    "wpe": ("", "centered, each row"),
    "attn.v": ("", "folded", "unbiased"),
    "attn.z": ("", "folded", "unbiased"),
    "attn.scores": ("", "-inf", "raw"),
    "attn.out by head": tuple(
        f"{bias}by head{mean}"
        for mean in ("", ", centered")
        for bias in ("", "folded, ", "unbiased, ")
    ),
    "resid_pre each head": ("", "centered", "each head", "centered, each head"),
}
# Names that are older than the bridge: HookedTransformer had no dropout to be after.
_UNDROPPED: Mapping[str, tuple[str, ...]] = {
    "hook_attn_out": ("attn.out",),
    "hook_mlp_out": ("mlp.out",),
}
_NUMBER = re.compile(r"(?<=^blocks\.)\d+(?=\.)")


def _lens(name: str) -> tuple[Promise, ...] | None:
    numbers = _NUMBER.findall(name)
    meaning = _LENS.get(_NUMBER.sub("{l}", name))
    if meaning is None:
        return None
    if not meaning:
        return ()
    if meaning == "last resid_post":
        return ((Site("resid_post", LAST), _FORMS["resid_post"]),)
    part, _, form = meaning.partition(" ")
    forms = _FORMS.get(meaning, (form,))
    layer = int(numbers[0]) if numbers else None
    parts = (part, *_UNDROPPED.get(name.rpartition(".")[2], ()))
    return tuple((Site(one, layer), forms) for one in parts)


# The last block, of however many.
LAST = -1


# -- pyvene --------------------------------------------------------------------

_COMPONENTS: Mapping[str, str] = {
    "block_input": "resid_pre",
    "block_output": "resid_post",
    "mlp_activation": "mlp.post",
    "mlp_output": "mlp_out",
    "mlp_input": "ln_2",
    "attention_value_output": "attn.z",
    "head_attention_value_output": "attn.z",
    "attention_weight": "attn.pattern",
    "attention_output": "attn_out",
    "attention_input": "ln_1",
    "query_output": "attn.q",
    "key_output": "attn.k",
    "value_output": "attn.v",
    "head_query_output": "attn.q",
    "head_key_output": "attn.k",
    "head_value_output": "attn.v",
}
_COMPONENT = "|".join(sorted(_COMPONENTS, key=len, reverse=True))
# The keys of IntervenableModel.interventions, in both ways that it spells them.
_KEY = re.compile(rf"layer[_.](\d+)[_.]comp[_.]({_COMPONENT})[_.]unit[_.].*")
_PATH_KEY = re.compile(r"comp[_.](.+)[_.]unit[_.].*")
# What people call the lists that it returns.
_COMPONENT_OF = re.compile(rf"(?:layer[_.]?)?(\d+)[_.]({_COMPONENT})")
_OF_COMPONENT = re.compile(rf"({_COMPONENT})[_.](\d+)")


def _pyvene(name: str) -> tuple[Promise, ...] | None:
    for pattern in (_KEY, _COMPONENT_OF):
        if found := pattern.fullmatch(name):
            return ((Site(_COMPONENTS[found[2]], int(found[1])), ("",)),)
    if found := _OF_COMPONENT.fullmatch(name):
        return ((Site(_COMPONENTS[found[1]], int(found[2])), ("",)),)
    if found := _PATH_KEY.fullmatch(name):
        layers = re.findall(r"\[(\d+)\]", found[1])
        path = re.sub(r"\[\d+\]", "[l]", found[1]).replace(".", "_")
        if (part := _underscored().get(path)) is not None:
            return ((Site(part, int(layers[0]) if layers else None), ("",)),)
    return None


@lru_cache
def _underscored() -> Mapping[str, str]:
    """Map module paths as pyvene writes them into a key, dots replaced."""
    return dict(_all_underscored())


def _all_underscored() -> Iterator[tuple[str, str]]:
    inside = {part.name for part in BLOCK}
    for part in PARTS:
        if not part.hf:
            continue
        short = part.name.removeprefix("h.{l}.")
        path = part.hf.replace(".{l}", "[l]") if part.name in inside else part.hf
        path = path.replace(".output.1", ".output[1]")
        for spelling in (path, path.removeprefix("transformer.")):
            for ending in ("", ".output"):
                yield (spelling + ending).replace(".", "_"), short


# -- torchlens -----------------------------------------------------------------

# Labels number the operations of a pass (addmm_3_43): they promise no site.
_LABEL = re.compile(r"([a-z]+[a-z0-9]*)_\d+_\d+(?::\d+)?")


def _torchlens(name: str) -> tuple[Promise, ...] | None:
    return () if family(name) else None


@lru_cache
def _operations() -> frozenset[str]:
    """Return the names of torch's functions and methods as labels spell them."""
    return frozenset(
        name.strip("_").replace("_", "").lower() for name in (*dir(F), *dir(Tensor))
    ) | {"input", "output"}


_READERS = {"transformer-lens": _lens, "pyvene": _pyvene, "torchlens": _torchlens}
