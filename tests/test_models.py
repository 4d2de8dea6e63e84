"""Where a model comes from, and that random weights hide nothing."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import recon
from recon.models import BUNDLED_PATH, DTYPES, RANDOM_SIZES, perturb, skeleton
from recon.sites import PARTS

bundled = pytest.mark.skipif(
    not (BUNDLED_PATH / "config.json").is_file(),
    reason="the bundled model is not in this tree",
)


def saved(model, path):
    model.save_pretrained(path)
    return str(path)


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- random weights ------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_random_model_is_as_asked_for(attention, dtype):
    loaded = recon.load_model("random:tiny", dtype=dtype, attention=attention)
    assert loaded.random
    assert loaded.model.dtype is dtype
    assert loaded.model.config._attn_implementation == attention
    assert not loaded.model.training


def test_a_seed_gives_the_same_weights_each_time():
    first, again, other = (
        recon.load_model("random:tiny", seed=seed).model for seed in (1, 1, 2)
    )
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_a_random_model_takes_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    recon.load_model("random:tiny")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", RANDOM_SIZES)
def test_the_sizes_are_those_that_were_published(size):
    sizes = skeleton(f"random:{size}").sizes
    assert sizes["D"] == sizes["H"] * sizes["d"]
    assert sizes["V"] == (3000 if size == "tiny" else 50257)


def test_a_published_size_has_the_sizes_of_its_paper():
    assert skeleton("random:gpt2-xl").sizes == {
        "D": 1600,
        "H": 25,
        "d": 64,
        "M": 6400,
        "V": 50257,
    }
    assert skeleton("random:gpt2-xl").model.config.n_layer == 48


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
@pytest.mark.parametrize("cross", [False, True])
def test_perturbed_weights_are_nowhere_trivial(make_model, kind, cross):
    model = make_model(kind, add_cross_attention=cross)
    for name, weight in model.named_parameters():
        assert weight.ne(0).all(), name
        assert weight.std() > 0.01, name
        if ".ln_" in name or name.startswith("ln_f"):
            assert weight.ne(1).all(), name


def test_perturbing_is_seeded_and_leaves_the_global_generator(make_model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = make_model(), make_model(seed=3), make_model()
    torch.set_rng_state(before)
    perturb(same)
    perturb(other, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_perturbed_weights_spread_the_attention(make_model, make_ids, record):
    # Neither uniform nor one-hot: both would hide faults of the pattern.
    trace, _ = record(make_model(), make_ids())
    last_rows = trace["h.1.attn.pattern"][:, :, -1]
    assert 0.25 < float(last_rows.amax(-1).mean()) < 0.95


def test_perturbed_weights_tell_the_two_gelus_apart(make_model, make_ids, record):
    trace, _ = record(make_model(), make_ids())
    before, after = trace["h.1.mlp.pre"], trace["h.1.mlp.post"]
    erf = torch.nn.functional.gelu(before)
    assert float((erf - after).abs().max()) > 1e-4


# -- directories ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_as_it_was(make_model, tmp_path, kind, dtype):
    model = make_model(kind, dtype=dtype)
    loaded = recon.load_model(saved(model, tmp_path))
    assert type(loaded.model) is kind
    assert loaded.model.dtype is dtype
    assert same_weights(loaded.model, model)
    assert (loaded.random, loaded.tokenizer) == (False, None)
    assert not loaded.model.training


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_saved_model_takes_the_dtype_and_attention_asked_for(
    make_model, ids, all_exact, tmp_path, attention
):
    path = saved(make_model(), tmp_path)
    loaded = recon.load_model(path, dtype=torch.float64, attention=attention)
    environment = all_exact(recon.verify(loaded.model, ids)).environment
    assert (environment.dtype, environment.attention) == (torch.float64, attention)


@bundled
def test_the_bundled_model_loads_with_a_tokenizer():
    loaded = recon.load_model()
    assert (loaded.name, loaded.random) == ("bundled", False)
    ids = loaded.tokenizer("The quick brown fox")["input_ids"]
    assert max(ids) < loaded.model.config.vocab_size


# -- what cannot be had --------------------------------------------------------


def config_with(**values):
    def damage(path):
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def config_of(content):
    return lambda path: (path / "config.json").write_bytes(content)


def weights_of(content):
    return lambda path: (path / "model.safetensors").write_bytes(content)


def cut_weights(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickled_weights(path):
    (path / "model.safetensors").unlink()
    torch.save(Path("no tensor"), path / "pytorch_model.bin")


def broken_index(path):
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text("{")


def lost_shard(path):
    (path / "model.safetensors").unlink()
    shards = {"weight_map": {"transformer.wte.weight": "one.safetensors"}}
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}} | shards)
    )


DAMAGE = {
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "half a config": (config_of(b"{"), "its config.json is no JSON"),
    "a config of bytes": (config_of(b"\xff\xfe{}"), "its config.json is no text"),
    "a config of a list": (config_of(b"[1]"), "its config.json"),
    "an empty config": (config_of(b"{}"), "its config.json names no model_type"),
    "width in words": (config_with(n_embd="wide"), "n_embd is 'wide'"),
    "inner in words": (config_with(n_inner="wide"), "n_inner is 'wide'"),
    "epsilon in words": (
        config_with(layer_norm_epsilon="small"),
        "no model can be made: layer_norm_epsilon is 'small' .* expected a number",
    ),
    "no heads": (config_with(n_head=0), "no model can be made of its config: .*zero"),
    "unknown activation": (config_with(activation_function="x"), "no model .*KeyError"),
    "unknown dtype": (config_with(dtype="x"), "no model can be made"),
}
DAMAGED_WEIGHTS = {
    "no weights": (
        lambda p: (p / "model.safetensors").unlink(),
        "has no weights; expected model.safetensors in it",
    ),
    "zeros": (weights_of(bytes(64)), "its weights are damaged, or cut short: "),
    "cut": (cut_weights, "its weights are damaged, or cut short: .*not fully covered"),
    "pickled": (pickled_weights, "no plain tensors, and nothing is unpickled"),
    "half an index": (broken_index, "the index of its weights is no JSON"),
    "a lost shard": (lost_shard, "its weights cannot be read: No such file .*one.safe"),
}


@pytest.mark.parametrize(
    ("damage", "words"),
    [*DAMAGE.values(), *DAMAGED_WEIGHTS.values()],
    ids=[*DAMAGE, *DAMAGED_WEIGHTS],
)
def test_what_keeps_a_directory_from_loading_is_one_clear_line(
    make_model, tmp_path, damage, words
):
    path = saved(make_model(), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(recon.UsageError, match=words) as caught:
        recon.load_model(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_skeleton_is_kept_by_the_same_configs(make_model, tmp_path, damage, words):
    path = saved(make_model(), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(recon.UsageError, match=words):
        skeleton(path)


@pytest.mark.parametrize(("damage", "_"), DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS)
def test_a_skeleton_needs_no_weights(make_model, tmp_path, damage, _):
    path = saved(make_model(), tmp_path / "model")
    damage(tmp_path / "model")
    assert skeleton(path).sizes["D"] == make_model().config.n_embd


def test_weights_that_are_missing_are_not_made_up(make_model, tmp_path):
    path = saved(make_model(GPT2Model, n_layer=2), tmp_path)
    config = GPT2Config.from_pretrained(path)
    config.n_layer = 3
    config.save_pretrained(path)
    with pytest.raises(recon.UsageError, match=r"weights are missing, h\.2"):
        recon.load_model(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random:gpt3", "random:gpt3 is unknown; .*tiny, gpt2, gpt2-medium"),
        ("random:", "random: is unknown"),
        ("no-such-model", "cannot load model 'no-such-model'"),
        ("bundle", r"\(did you mean bundled\?\)"),
        ("gtp2-medium", r"\(did you mean gpt2-medium\?\)"),
        ("./nowhere", "./nowhere does not exist; expected a directory"),
        ("/no/such/place", "does not exist"),
        ("~/no-such-place", "does not exist"),
        (__file__, "is a file; expected a directory"),
        (str(Path(__file__).parent), "has no config.json"),
    ],
)
@pytest.mark.parametrize("build", [recon.load_model, skeleton])
def test_a_name_that_leads_nowhere_is_one_clear_line(build, name, words):
    with pytest.raises(recon.UsageError, match=words) as caught:
        build(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.T5Config(architectures=["T5Model"]), r"found T5Model \(t5\)"),
        (transformers.BertConfig(), r"found .* \(bert\)"),
        (
            GPT2Config(architectures=["GPT2ForSequenceClassification"]),
            "GPT2LMHeadModel and GPT2Model, found GPT2ForSequenceClassification",
        ),
        (
            GPT2Config(architectures=["GPT2DoubleHeadsModel"]),
            "found GPT2DoubleHeadsModel",
        ),
    ],
    ids=["t5", "bert", "classifier", "two heads"],
)
@pytest.mark.parametrize("build", [recon.load_model, skeleton])
def test_another_architecture_is_refused_by_name(tmp_path, build, config, words):
    config.save_pretrained(tmp_path)
    with pytest.raises(recon.UnsupportedError, match=words):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "flash_attention_2"}, "'flash_attention_2': recon checks eager"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"device": "meta"}, "device 'meta' computes shapes only"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
    ],
)
def test_an_option_that_cannot_be_had_is_one_clear_line(options, words):
    with pytest.raises(recon.UsageError, match=words) as caught:
        recon.load_model("random:tiny", **options)
    assert "\n" not in str(caught.value)


def test_loading_leaves_the_verbosity_of_transformers(make_model, tmp_path):
    path = saved(make_model(), tmp_path)
    logs = transformers.utils.logging
    before = logs.get_verbosity(), logs.is_progress_bar_enabled()
    recon.load_model(path)
    assert (logs.get_verbosity(), logs.is_progress_bar_enabled()) == before


# -- a skeleton ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
@pytest.mark.parametrize("cross", [False, True])
def test_a_skeleton_shows_every_site_in_its_shape(make_model, tmp_path, kind, cross):
    made = skeleton(saved(make_model(kind, add_cross_attention=cross), tmp_path))
    with torch.no_grad(), recon.capture(made.model) as recorder:
        made.model(**made.inputs)
    trace = recorder.trace
    small = made.model.config
    sizes = {"B": 1, "T": 1, "S": 1, "E": 1, "1|B": 1, "H": small.n_head}
    sizes |= {"D": small.n_embd, "d": 2, "M": small.n_inner, "V": small.vocab_size}
    sizes |= {f"{n}D": n * small.n_embd for n in (2, 3)}
    shown = [p for p in PARTS if cross or "cross" not in p.name]
    shown = [p for p in shown if kind is GPT2LMHeadModel or p.name != "logits"]
    for part in shown:
        shape = trace[part.name.replace("{l}", "1")].shape
        assert tuple(shape) == tuple(sizes[axis] for axis in part.shape.split())
    assert len({site.part for site in trace.sites}) == len(shown)


def test_a_skeleton_takes_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    skeleton("random:tiny")
    assert torch.equal(torch.get_rng_state(), before)
