"""Random GPT-2s and random inputs, as small descriptions that build them.

What a strategy yields is plain data: it prints as what must be typed into an
``@example``, and shrinks towards a small model with ordinary options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from recon.models import ACTIVATIONS, DTYPES, build

Rows: TypeAlias = tuple[str, ...]
Options: TypeAlias = Mapping[str, Any]

VOCABULARY = 29
CONTEXT = 24
MOST_TOKENS = 9
SMALLEST: Options = {"n_layer": 1, "n_head": 1, "n_embd": 4}


@dataclass(frozen=True)
class Recipe:
    """How to build a model: options of its config, and what is not in a config.

    ``headed`` makes a GPT2LMHeadModel, else a GPT2Model; ``dtype`` and ``attention``
    are names, as on the command line.
    """

    options: Options
    headed: bool = True
    dtype: str = "float32"
    attention: str = "eager"
    train: bool = False
    seed: int = 0

    @property
    def width(self) -> int:
        """Return n_embd."""
        return int(self.options["n_embd"])

    @property
    def depth(self) -> int:
        """Return n_layer."""
        return int(self.options["n_layer"])

    @property
    def cross(self) -> bool:
        """Whether there is cross-attention, so that encoder states may be given."""
        return bool(self.options.get("add_cross_attention", False))

    def build(self) -> nn.Module:
        """Build it with the weights of its seed; draw from no global generator."""
        options = {
            "vocab_size": VOCABULARY,
            "n_positions": CONTEXT,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **self.options,
        }
        model = build(
            options, headed=self.headed, attention=self.attention, seed=self.seed
        )
        nn.Module.to(model, DTYPES[self.dtype])
        model.train(self.train)
        return model


@dataclass(frozen=True)
class Prompt:
    """What to call a model with; masks are spelt as rows of 0 and 1.

    ``positions`` is empty for none, ``shared`` for one row, ``each`` for one a row of
    the batch; ``keep`` is logits_to_keep; ``encoder`` the number of encoder states.
    """

    batch: int = 1
    tokens: int = 1
    seed: int = 0
    embeds: bool = False
    mask: Rows = ()
    positions: str = ""
    token_types: bool = False
    encoder: int = 0
    encoder_mask: Rows = ()
    keep: int | tuple[int, ...] | None = None
    use_cache: bool | None = None

    def tensors(self, recipe: Recipe) -> dict[str, Any]:
        """Return the model's keyword arguments."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.tokens)

        def integers(limit: int, *shape: int) -> Tensor:
            return torch.randint(limit, shape, generator=generator)

        def floats(*shape: int) -> Tensor:
            some = torch.randn(shape, generator=generator, dtype=torch.float64)
            return some.to(DTYPES[recipe.dtype])

        given: dict[str, Any] = {"input_ids": integers(VOCABULARY, *shape)}
        if self.embeds:
            given = {"inputs_embeds": floats(*shape, recipe.width)}
        if self.mask:
            given["attention_mask"] = as_mask(self.mask)
        if self.positions:
            rows = self.batch if self.positions == "each" else 1
            given["position_ids"] = integers(CONTEXT, rows, self.tokens)
        if self.token_types:
            given["token_type_ids"] = integers(VOCABULARY, *shape)
        if self.encoder:
            states = floats(self.batch, self.encoder, recipe.width)
            given["encoder_hidden_states"] = states
        if self.encoder_mask:
            given["encoder_attention_mask"] = as_mask(self.encoder_mask)
        if self.keep is not None:
            keep = self.keep
            given["logits_to_keep"] = (
                keep if isinstance(keep, int) else torch.tensor(keep)
            )
        if self.use_cache is not None:
            given["use_cache"] = self.use_cache
        return given

    @property
    def seen(self) -> Tensor:
        """Which token each may be attended to, B T."""
        if not self.mask:
            return torch.ones(self.batch, self.tokens, dtype=torch.bool)
        return as_mask(self.mask).bool()

    @property
    def awake(self) -> Tensor:
        """Which token may attend to any token at all, B T."""
        return self.seen.cumsum(-1) > 0


@dataclass(frozen=True)
class Run:
    """A model and what it is called with."""

    recipe: Recipe
    prompt: Prompt

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the model, and its keyword arguments."""
        return self.recipe.build(), self.prompt.tensors(self.recipe)


def as_mask(rows: Rows) -> Tensor:
    """Read ``("011", "111")`` as an attention mask, B T."""
    return torch.tensor([[int(bit) for bit in row] for row in rows])


# -- models --------------------------------------------------------------------


# GPT-2's own choice stands first, and is left out of what is drawn.
_CHOICES: Mapping[str, st.SearchStrategy[Any]] = {
    "activation_function": st.sampled_from(ACTIVATIONS),
    "n_inner": st.none() | st.integers(1, 40) | st.just(300),
    "layer_norm_epsilon": st.sampled_from([1e-5, 1e-12, 1e-2, 1.0]),
    "scale_attn_weights": st.sampled_from([True, False]),
    "scale_attn_by_inverse_layer_idx": st.booleans(),
    "reorder_and_upcast_attn": st.booleans(),
    "add_cross_attention": st.booleans(),
    "tie_word_embeddings": st.sampled_from([True, False]),
    "tie_last_hidden_states": st.sampled_from([None, True, False]),
    "resid_pdrop": st.sampled_from([0.1, 0.0, 0.5]),
    "embd_pdrop": st.sampled_from([0.1, 0.0, 0.5]),
    "attn_pdrop": st.sampled_from([0.1, 0.0, 0.5]),
}
_USUAL: Options = {
    "activation_function": ACTIVATIONS[0],
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "tie_last_hidden_states": None,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
}


@st.composite
def gpt2_configs(draw: st.DrawFn, max_layer: int = 4) -> Options:
    """Draw every option of GPT2Config that changes what the model computes.

    Vocabulary and context are not among them: ``Recipe.build`` sets both.
    """
    heads = draw(st.integers(1, 4))
    drawn = {name: draw(choice) for name, choice in _CHOICES.items()}
    return {
        "n_layer": draw(st.integers(1, max_layer)),
        "n_head": heads,
        "n_embd": heads * draw(st.integers(1, 8)),
        **{name: v for name, v in drawn.items() if v != _USUAL[name]},
    }


@st.composite
def models(
    draw: st.DrawFn,
    *,
    max_layer: int = 4,
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "float64"),
    train: bool = False,
) -> Recipe:
    """Draw a model with seeded weights; ``train`` allows train mode too."""
    recipe = Recipe(
        options=draw(gpt2_configs(max_layer)),
        headed=draw(st.sampled_from([True, False])),
        dtype=draw(st.sampled_from(dtypes)),
        attention=draw(st.sampled_from(["eager", "sdpa"])),
        train=train and draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )
    if recipe.dtype == "float64":
        # transformers itself raises there: it demands weights in float32.
        usual = {**recipe.options, "reorder_and_upcast_attn": False}
        recipe = replace(recipe, options=usual)
    return recipe


# -- inputs --------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn, batch: int, tokens: int) -> Rows:
    """Draw an attention mask: none, padding on either or both sides, or holes.

    Some row may attend to something: with none there is no attention to verify.
    """
    kind = draw(st.sampled_from(["none", "left", "right", "both", "holes"]))
    if kind == "none":
        return ()
    rows = []
    for _ in range(batch):
        if kind == "holes":
            rows.append(draw(st.text("10", min_size=tokens, max_size=tokens)))
            continue
        left = draw(st.integers(0, tokens - 1)) if kind != "right" else 0
        right = draw(st.integers(0, tokens - 1 - left)) if kind != "left" else 0
        rows.append("0" * left + "1" * (tokens - left - right) + "0" * right)
    return tuple(rows) if any("1" in row for row in rows) else ()


@st.composite
def gpt2_inputs(
    draw: st.DrawFn, recipe: Recipe, *, min_tokens: int = 1, min_batch: int = 1
) -> Prompt:
    """Draw what a model may be called with, as far as its options allow it."""
    batch = draw(st.integers(min_batch, 3))
    tokens = draw(st.integers(min_tokens, MOST_TOKENS))
    encoder = draw(st.integers(0, 5)) if recipe.cross else 0
    keep: int | tuple[int, ...] | None = None
    if recipe.headed:
        rows = st.lists(st.integers(0, tokens - 1), min_size=1, max_size=3)
        keep = draw(st.none() | st.integers(0, tokens) | rows.map(tuple))
    return Prompt(
        batch=batch,
        tokens=tokens,
        seed=draw(st.integers(0, 999)),
        embeds=draw(st.booleans()),
        mask=draw(masks(batch, tokens)),
        positions=draw(st.sampled_from(["", "shared", "each"])),
        token_types=draw(st.booleans()),
        encoder=encoder,
        encoder_mask=draw(masks(batch, encoder)) if encoder else (),
        keep=keep,
        use_cache=draw(st.sampled_from([None, True, False])),
    )


def runs(
    *, min_tokens: int = 1, min_batch: int = 1, **about_model: Any
) -> st.SearchStrategy[Run]:
    """Draw a model together with inputs that fit it; takes what ``models`` takes."""

    def with_inputs(recipe: Recipe) -> st.SearchStrategy[Run]:
        prompt = gpt2_inputs(recipe, min_tokens=min_tokens, min_batch=min_batch)
        return st.builds(Run, st.just(recipe), prompt)

    return models(**about_model).flatmap(with_inputs)
