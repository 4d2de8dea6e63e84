"""Train the small GPT-2 that recon bundles, and show that it has learned.

The text is the language reference inside every CPython, ``pydoc_data.topics``.
Whole topics are held out. The model is kept only if, on the held-out tokens, it
beats a unigram and a bigram baseline fitted to the same training tokens:

    python tools/train_bundled.py

Equal weights come out of equal seed, steps, threads, library versions and machine;
the digest that is printed shows it.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics as TOPICS  # noqa: N812 - it is a constant

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "src/recon/data/gpt2-topics"
END = "<|endoftext|>"
CONTEXT = 256
VOCABULARY = 2000

HELD_OUT_SHARE = 0.08  # of the characters
SHARED_RUN = 8  # words; a training paragraph with such a run in common is dropped
MARGIN = 0.25  # nats per token by which the model must beat the bigram

BATCH = 4
PEAK_RATE = 2e-3
WARM_UP = 100
WEIGHT_DECAY = 1.0
NOISE = 0.1  # share of input tokens replaced at random, against learning by heart
CLIP = 1.0
EVALUATE_EVERY = 100

PROMPT_TOKENS = 70

NOTICE = """\
gpt2-topics: a small GPT-2 trained on Python's documentation
=============================================================

The weights and the tokenizer in this directory were computed from, and prompt.txt
is quoted from, the text of the module pydoc_data.topics of CPython {version}, which is
made from the Python Language Reference and the Python Library Reference,
https://docs.python.org/3/

    Copyright (c) Python Software Foundation; All Rights Reserved

Changes made: paragraphs that occur more than once were kept once, the text was cut
into tokens, and a language model was trained on the tokens. No other text was used.
The Python Software Foundation has no part in this model and does not endorse it.

The text is licensed under the licence below, as it stands in that CPython.

"""

Paragraphs = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    seed: int
    steps: int
    threads: int
    out: Path


@dataclass(frozen=True, slots=True)
class Losses:
    """Held-out cross-entropy in nats per token, over the same positions."""

    model: float
    bigram: float
    unigram: float

    def clear(self) -> bool:
        """Whether the model beats both baselines by ``MARGIN`` or more."""
        return self.model <= min(self.bigram, self.unigram) - MARGIN


# --- the text -------------------------------------------------------------------


def text_digest() -> str:
    """SHA-256 of the topics: name, newline, text, newline, sorted by name."""
    joined = "".join(f"{name}\n{text}\n" for name, text in sorted(TOPICS.items()))
    return hashlib.sha256(joined.encode()).hexdigest()


def unique_paragraphs() -> Paragraphs:
    """Paragraphs by topic, each one only in the first topic that has it.

    Topics quote one another whole ("with" is a part of "compound"), so a split by
    topic alone would let the model train on much of what is held out.
    """
    seen: set[str] = set()
    kept: Paragraphs = {}
    for name, text in sorted(TOPICS.items()):
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.setdefault(name, []).append(paragraph)
    return kept


def held_out_topics(paragraphs: Paragraphs, seed: int) -> set[str]:
    """Topics drawn at random while they fit into the held-out share."""
    sizes = {name: sum(map(len, parts)) for name, parts in paragraphs.items()}
    room = HELD_OUT_SHARE * sum(sizes.values())
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    chosen: set[str] = set()
    for name in names:
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return chosen


def word_runs(paragraph: str) -> set[tuple[str, ...]]:
    """Every run of ``SHARED_RUN`` words, ignoring case and punctuation."""
    words = re.findall(r"\w+", paragraph.lower())
    starts = range(len(words) - SHARED_RUN + 1)
    return {tuple(words[i : i + SHARED_RUN]) for i in starts}


def split(paragraphs: Paragraphs, seed: int) -> tuple[Paragraphs, Paragraphs]:
    """Train and held-out paragraphs, with no ``SHARED_RUN`` words in common."""
    chosen = held_out_topics(paragraphs, seed)
    held_out = {name: paragraphs[name] for name in sorted(chosen)}
    quoted = set[tuple[str, ...]]().union(
        *(word_runs(part) for parts in held_out.values() for part in parts)
    )
    train = {
        name: [part for part in parts if quoted.isdisjoint(word_runs(part))]
        for name, parts in paragraphs.items()
        if name not in chosen
    }
    return train, held_out


def documents(paragraphs: Paragraphs) -> list[str]:
    """One text a topic."""
    return ["\n\n".join(parts) + "\n" for parts in paragraphs.values() if parts]


# --- the tokenizer --------------------------------------------------------------


def train_tokenizer(texts: Iterable[str]) -> GPT2Tokenizer:
    """A byte-level BPE tokenizer, split and spelled as GPT-2's."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    return GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=END,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )


def encode(tokenizer: GPT2Tokenizer, texts: Iterable[str]) -> Tensor:
    """All texts in one row of ids, each after an end-of-text token: ``[tokens]``."""
    rows = [tokenizer.encode(END + text, verbose=False) for text in texts]
    return torch.tensor([token for row in rows for token in row])


def plain_prose(paragraph: str) -> bool:
    """Whether it reads as sentences: no heading, code, list, table or markup."""
    return bool(re.fullmatch(r"[A-Z][^*|_`=<>\[\]{}\\]*\.", paragraph)) and not (
        re.search(r"^\s|::|\n\s", paragraph)
    )


def choose_prompt(tokenizer: GPT2Tokenizer, held_out: Paragraphs) -> str:
    """The prose paragraph whose length is nearest to ``PROMPT_TOKENS``."""
    prose = [part for parts in held_out.values() for part in parts if plain_prose(part)]
    return min(prose, key=lambda p: abs(len(tokenizer.encode(p)) - PROMPT_TOKENS))


# --- the baselines --------------------------------------------------------------


def unigram_loss(train: Sequence[int], held_out: Sequence[int]) -> float:
    """Nats per held-out token, the first one left out; counts plus one."""
    counts = Counter(train)
    total = len(train) + VOCABULARY
    logs = [math.log((counts[token] + 1) / total) for token in held_out[1:]]
    return -sum(logs) / len(logs)


def bigram_loss(train: Sequence[int], held_out: Sequence[int]) -> float:
    """Nats per held-out token given the one before: interpolated Kneser-Ney.

    The discount is n1 / (n1 + 2 n2), from the training pairs seen once and twice
    (Ney, Essen and Kneser 1994; Chen and Goodman 1999, section 2.7). Beneath stands
    how many tokens each token follows, plus one.
    """
    pairs = Counter(itertools.pairwise(train))
    of_count = Counter(pairs.values())
    discount = of_count[1] / (of_count[1] + 2 * of_count[2])
    before = Counter(train[:-1])
    followers = Counter(first for first, _ in pairs)
    follows = Counter(second for _, second in pairs)

    def probability(first: int, second: int) -> float:
        beneath = (follows[second] + 1) / (len(pairs) + VOCABULARY)
        if not before[first]:
            return beneath
        seen = max(pairs[first, second] - discount, 0.0)
        return (seen + discount * followers[first] * beneath) / before[first]

    moves = list(itertools.pairwise(held_out))
    return -sum(math.log(probability(*move)) for move in moves) / len(moves)


# --- the model ------------------------------------------------------------------


def new_model(tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    """GPT-2 as published, only smaller, with biases that do not begin at zero.

    Softmax ignores a shift that all keys share, so training would leave the key
    biases at zero, and an audit of them could not tell them from nothing.
    """
    end = tokenizer.convert_tokens_to_ids(END)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        dtype="float32",
    )
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    return model


def optimizer_for(model: GPT2LMHeadModel) -> torch.optim.AdamW:
    """AdamW that decays matrices only: neither biases nor LayerNorms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak rate: a linear warm-up, then a cosine down to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def random_windows(tokens: Tensor, draw: torch.Generator) -> Tensor:
    """Windows from random offsets: ``[BATCH, CONTEXT]``."""
    offsets = torch.randint(len(tokens) - CONTEXT + 1, (BATCH,), generator=draw)
    return tokens.unfold(0, CONTEXT, 1)[offsets]


def with_noise(windows: Tensor, vocabulary: int, draw: torch.Generator) -> Tensor:
    """The windows with some tokens replaced by random ones."""
    drawn = torch.rand(windows.shape, generator=draw)
    other = torch.randint(vocabulary, windows.shape, generator=draw)
    return torch.where(drawn < NOISE, other, windows)


@torch.no_grad()
def model_loss(model: GPT2LMHeadModel, tokens: Tensor) -> float:
    """Nats per token over all tokens but the first, as the baselines count.

    Neighbouring windows share one token: the last one to be predicted in the one is
    the first one given in the other.
    """
    model.eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, CONTEXT):
        window = tokens[start : start + CONTEXT + 1]
        logits = model(input_ids=window[None, :-1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")
        total += loss.item()
    model.train()
    return total / (len(tokens) - 1)


def train_model(
    model: GPT2LMHeadModel, train: Tensor, held_out: Tensor, options: Options
) -> tuple[int, float]:
    """Train in place; leave the weights with the best held-out loss, in eval mode.

    Returns the step that they come from and their held-out loss.
    """
    optimizer = optimizer_for(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, options.steps)
    )
    draw = torch.Generator().manual_seed(options.seed)
    best_step, best_loss = 0, model_loss(model, held_out)
    best_weights = copy.deepcopy(model.state_dict())
    for step in range(1, options.steps + 1):
        windows = random_windows(train, draw)
        inputs = with_noise(windows, model.config.vocab_size, draw)
        logits = model(input_ids=inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), windows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if step % EVALUATE_EVERY == 0 or step == options.steps:
            now = model_loss(model, held_out)
            print(f"step {step:5d}  train {loss.item():.3f}  held-out {now:.3f}")
            if now < best_loss:
                best_step, best_loss = step, now
                best_weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    model.eval()
    return best_step, best_loss


# --- the report and the files ---------------------------------------------------


def print_spread(model: GPT2LMHeadModel) -> None:
    """Print how far biases and LayerNorms lie from the values of a blank model."""
    print("standard deviation over all blocks; a gain's distance from 1 in brackets")
    vectors: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        kind = re.sub(r"transformer\.(h\.\d+\.)?", "", name)
        if kind == "attn.c_attn.bias":
            for part, piece in zip("qkv", parameter.detach().chunk(3), strict=True):
                vectors.setdefault(f"{kind} {part}", []).append(piece)
        elif parameter.dim() == 1:
            vectors.setdefault(kind, []).append(parameter.detach())
    for kind, pieces in vectors.items():
        values = torch.cat(pieces)
        gain = f" ({(values - 1).abs().max():.3f})" if ".weight" in kind else ""
        print(f"  {kind:20} {values.std():.4f}{gain}")


def psf_licence() -> str:
    """The licence text that CPython carries next to its standard library."""
    text = (Path(os.__file__).parent / "LICENSE.txt").read_text(encoding="utf-8")
    start = text.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    return text[start : text.index("BEOPEN.COM LICENSE AGREEMENT")].rstrip() + "\n"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replace_directory(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out``; an older bundle there gives way, nothing else."""
    if out.exists():
        if not (out / "training.json").is_file():
            raise FileExistsError(f"{out} exists and is no bundle: no training.json")
        shutil.rmtree(out)
    new.rename(out)


def parse() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    return Options(**vars(parser.parse_args()))


def write(
    out: Path,
    model: GPT2LMHeadModel,
    tokenizer: GPT2Tokenizer,
    prompt: str,
    record: dict[str, object],
) -> None:
    """Write the bundle to a temporary directory beside ``out``, then rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=out.parent, prefix=".new-"))
    try:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")
        notice = NOTICE.format(version=platform.python_version()) + psf_licence()
        (new / "NOTICE").write_text(notice, encoding="utf-8")
        record["model_sha256"] = digest(new / "model.safetensors")
        (new / "training.json").write_text(
            json.dumps(record, indent=2) + "\n", encoding="utf-8"
        )
        new.chmod(0o755)
        for path in new.iterdir():
            path.chmod(0o644)
        replace_directory(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    print(f"wrote {out}, model.safetensors {record['model_sha256']}")


def main() -> int:
    """Train, compare, report; keep the model if it is clearly better."""
    options = parse()
    begun = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    train_text, held_text = split(unique_paragraphs(), options.seed)
    tokenizer = train_tokenizer(documents(train_text))
    train = encode(tokenizer, documents(train_text))
    held_out = encode(tokenizer, documents(held_text))
    model = new_model(tokenizer)
    step, loss = train_model(model, train, held_out, options)
    losses = Losses(
        model=loss,
        bigram=bigram_loss(train.tolist(), held_out.tolist()),
        unigram=unigram_loss(train.tolist(), held_out.tolist()),
    )
    print(f"held-out nats per token: {losses}, after step {step}")
    print_spread(model)
    if not losses.clear():
        print(f"not {MARGIN} nats below both baselines: nothing is written")
        return 1
    record: dict[str, object] = {
        "seed": options.seed,
        "steps": options.steps,
        "threads": options.threads,
        "best_step": step,
        "vocabulary": VOCABULARY,
        "batch": BATCH,
        "peak_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "input_noise": NOISE,
        "note": "step and settings were chosen on the held-out tokens",
        "text": "pydoc_data.topics",
        "text_sha256": text_digest(),
        "tokens": {"train": len(train), "held_out": len(held_out)},
        "held_out_nats_per_token": asdict(losses),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    write(options.out, model, tokenizer, choose_prompt(tokenizer, held_text), record)
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
