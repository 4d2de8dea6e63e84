"""The shared vocabulary: every place in the forward pass that recon can name.

Shapes use ``B`` batch, ``T`` tokens, ``S`` keys, ``E`` encoder tokens, ``D`` width,
``H`` heads, ``d = D/H``, ``M`` MLP width and ``V`` vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property, lru_cache

from recon.errors import UnknownSiteError


@dataclass(frozen=True)
class Part:
    """One row of the vocabulary; ``{l}`` in a name stands for the block's number."""

    name: str
    shape: str
    meaning: str
    lens: str = ""
    hf: str = ""

    @property
    def in_block(self) -> bool:
        """Whether each block has such a site."""
        return self.name.startswith("h.{l}.")


def _block(name: str, shape: str, meaning: str, lens: str = "", hf: str = "") -> Part:
    return Part(
        f"h.{{l}}.{name}",
        shape,
        meaning,
        f"blocks.{{l}}.{lens}" if lens else "",
        f"transformer.h.{{l}}{hf}" if hf else "",
    )


STEM = (
    Part("wte", "B T D", "token embeddings", "hook_embed", "transformer.wte"),
    Part("wpe", "1|B T D", "position embeddings", "hook_pos_embed", "transformer.wpe"),
    Part("token_type", "B T D", "token-type embeddings (a second lookup in wte)"),
    Part("embed", "B T D", "their sum after dropout", "", "transformer.drop"),
)
BLOCK = (
    _block("resid_pre", "B T D", "input of the block", "hook_resid_pre", ".input"),
    _block("ln_1", "B T D", "output of ln_1", "ln1.hook_normalized", ".ln_1"),
    _block("attn.qkv", "B T 3D", "output of c_attn", "", ".attn.c_attn"),
    _block("attn.q", "B H T d", "queries, a view of qkv", "attn.hook_q"),
    _block("attn.k", "B H T d", "keys, a view of qkv", "attn.hook_k"),
    _block("attn.v", "B H T d", "values, a view of qkv", "attn.hook_v"),
    _block(
        "attn.scores",
        "B H T S",
        "scaled and masked, always derived",
        "attn.hook_attn_scores",
    ),
    _block(
        "attn.pattern",
        "B H T S",
        "attention weights (derived under sdpa)",
        "attn.hook_pattern",
        ".attn.output.1",
    ),
    _block(
        "attn.z",
        "B H T d",
        "input of c_proj, by head",
        "attn.hook_z",
        ".attn.c_proj.input",
    ),
    _block("attn.out", "B T D", "output of attn.c_proj", "", ".attn.c_proj"),
    _block("attn_out", "B T D", "what attention adds", "hook_attn_out", ".attn"),
    _block(
        "cross.resid_pre",
        "B T D",
        "stream before cross-attention",
        "",
        ".ln_cross_attn.input",
    ),
    _block("cross.ln", "B T D", "output of ln_cross_attn", "", ".ln_cross_attn"),
    _block("cross.q", "B H T d", "cross queries", "", ".crossattention.q_attn"),
    _block("cross.kv", "B E 2D", "cross keys and values", "", ".crossattention.c_attn"),
    _block("cross.k", "B H E d", "cross keys, a view of kv"),
    _block("cross.v", "B H E d", "cross values, a view of kv"),
    _block("cross.scores", "B H T E", "cross scores, always derived"),
    _block(
        "cross.pattern",
        "B H T E",
        "cross weights (derived under sdpa)",
        "",
        ".crossattention.output.1",
    ),
    _block(
        "cross.z",
        "B H T d",
        "input of cross c_proj, by head",
        "",
        ".crossattention.c_proj.input",
    ),
    _block(
        "cross.out", "B T D", "output of cross c_proj", "", ".crossattention.c_proj"
    ),
    _block("cross_out", "B T D", "what cross-attention adds", "", ".crossattention"),
    _block("resid_mid", "B T D", "input of ln_2", "hook_resid_mid", ".ln_2.input"),
    _block("ln_2", "B T D", "output of ln_2", "ln2.hook_normalized", ".ln_2"),
    _block("mlp.pre", "B T M", "before the activation", "mlp.hook_pre", ".mlp.c_fc"),
    _block("mlp.post", "B T M", "after the activation", "mlp.hook_post", ".mlp.act"),
    _block("mlp.out", "B T D", "before the MLP dropout", "", ".mlp.c_proj"),
    _block("mlp_out", "B T D", "what the MLP adds", "hook_mlp_out", ".mlp"),
    _block("resid_post", "B T D", "output of the block", "hook_resid_post", ".output"),
)
HEAD = (
    Part(
        "ln_f",
        "B T D",
        "output of the final LayerNorm",
        "ln_final.hook_normalized",
        "transformer.ln_f",
    ),
    Part("logits", "B T V", "output of lm_head", "unembed.hook_out", "lm_head"),
)
PARTS = (*STEM, *BLOCK, *HEAD)
_PART = {part.name.removeprefix("h.{l}."): part for part in PARTS}
_ORDER = {name: place for place, name in enumerate(_PART)}
_FIRST_HEAD = _ORDER["ln_f"]
_FIRST_BLOCK = _ORDER["resid_pre"]


@dataclass(frozen=True)
class Site:
    """One place in the forward pass, printed ``h.3.attn.q`` everywhere.

    ``part`` is the name without its block (``attn.q``); ``layer`` is None outside
    the blocks.
    """

    part: str
    layer: int | None = None

    @classmethod
    @cache
    def of(cls, part: str, layer: int | None = None) -> Site:
        """Return a site, the same object each time: what it knows is found once."""
        return cls(part, layer)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"Site({self._name!r})"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.part, self.layer))

    @cached_property
    def _name(self) -> str:
        return self.part if self.layer is None else f"h.{self.layer}.{self.part}"

    @property
    def row(self) -> Part:
        """The vocabulary's row for this site: shape, meaning, aliases."""
        return _PART[self.part]

    @cached_property
    def depth(self) -> tuple[int, int, int]:
        """Sorts sites in the order in which the model computes them."""
        place = _ORDER[self.part]
        stage = 0 if place < _FIRST_BLOCK else 1 if place < _FIRST_HEAD else 2
        return stage, self.layer or 0, place

    def __lt__(self, other: Site) -> bool:
        return self.depth < other.depth

    def stage(self, depth: int) -> int:
        """Say when it is computed: -1 before the blocks, l in block l, then depth."""
        first, layer, _ = self.depth
        return (-1, layer, depth)[first]

    def at(self, part: str) -> Site:
        """Another site of the same block."""
        return Site.of(part, self.layer)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Its name here, in TransformerLens and in Hugging Face, where they exist."""
        row = self.row
        names = (row.name, row.lens, *_hf_spellings(row.hf))
        return tuple(n.replace("{l}", str(self.layer)) for n in names if n)

    @property
    def lens(self) -> str:
        """TransformerLens's name of this site, or an empty string."""
        return self.row.lens.replace("{l}", str(self.layer))

    @property
    def hf(self) -> str:
        """Hugging Face's module path of this site, or an empty string."""
        return self.row.hf.replace("{l}", str(self.layer))


def _hf_spellings(path: str) -> tuple[str, ...]:
    """``transformer.h.3.mlp`` is also ``h.3.mlp`` and, spelt out, ``....output``."""
    if not path:
        return ()
    bare = path.removeprefix("transformer.")
    forms = [path, bare]
    if path.endswith(".output"):
        forms += [form.removesuffix(".output") for form in (path, bare)]
    elif not path.endswith((".input", ".output.1")):
        forms += [f"{form}.output" for form in (path, bare)]
    return tuple(dict.fromkeys(forms))


def _aliases() -> dict[str, str]:
    """Map each spelling, with ``{l}`` for the block's number, to its part's name."""
    table: dict[str, str] = {}
    for short, part in _PART.items():
        for spelling in (part.name, part.lens, *_hf_spellings(part.hf)):
            if spelling and table.setdefault(spelling, short) != short:
                raise AssertionError(f"{spelling} names {table[spelling]} and {short}")
    return table


_ALIASES = _aliases()
_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]*)(?=\.|$)")


@lru_cache(maxsize=16384)
def site(name: str | Site) -> Site:
    """Return the site called ``name`` here, in TransformerLens or in Hugging Face.

    Raises UnknownSiteError, with near misses, for anything else.
    """
    if isinstance(name, Site):
        return name
    numbers = _NUMBER.findall(name)
    pattern = _NUMBER.sub("{l}", name, count=1)
    short = _ALIASES.get(pattern)
    if short is None or "{l}" in name:
        raise UnknownSiteError(name, _spellings(numbers[0] if numbers else "0"))
    return Site(short, int(numbers[0]) if "{l}" in pattern else None)


def _spellings(layer: str) -> list[str]:
    return [spelling.replace("{l}", layer) for spelling in _ALIASES]


def all_sites(depth: int) -> Iterator[Site]:
    """Yield every site of a model of ``depth`` blocks, in order of computation."""
    for part in STEM:
        yield site(part.name)
    for layer in range(depth):
        for part in BLOCK:
            yield site(part.name.replace("{l}", str(layer)))
    for part in HEAD:
        yield site(part.name)


def select(
    patterns: str | Site | Iterable[str | Site], among: Iterable[Site]
) -> list[Site]:
    """Return the sites that match any pattern, in order of computation.

    A pattern is a name in any accepted vocabulary, or a glob such as
    ``h.*.attn.{q,k,v}``. Raises UnknownSiteError for a pattern that matches nothing.
    """
    known = sorted(among)
    asked = [patterns] if isinstance(patterns, str | Site) else list(patterns)
    chosen: set[Site] = set()
    for pattern in asked:
        globs = list(_expand_braces(str(pattern)))
        hits = {s for s in known if any(_matches(s, glob) for glob in globs)}
        if not hits:
            raise UnknownSiteError(str(pattern), [n for s in known for n in s.names])
        chosen |= hits
    return sorted(chosen)


def _matches(place: Site, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in place.names)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield ``a.b`` and ``a.c`` for ``a.{b,c}``; groups may follow each other."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    for choice in found[1].split(","):
        yield from _expand_braces(
            pattern[: found.start()] + choice + pattern[found.end() :]
        )
