"""Where a model comes from, and that random weights hide nothing."""

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


def test_the_smallest_published_size_has_its_parameters():
    model = skeleton("random:gpt2").model
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


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


def broken_weights(path):
    (path / "model.safetensors").write_bytes(b"\0" * 64)


def no_weights(path):
    (path / "model.safetensors").unlink()


def no_config(path):
    (path / "config.json").unlink()


def broken_config(path):
    (path / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_weights, "its weights cannot be read"),
        (no_weights, "its weights cannot be read"),
        (no_config, "has no config.json"),
        (broken_config, "cannot load model"),
    ],
)
def test_a_broken_directory_is_one_clear_line(make_model, tmp_path, damage, words):
    path = saved(make_model(), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(recon.UsageError, match=words) as caught:
        recon.load_model(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_a_skeleton_shows_the_shape_of_every_site_without_weights():
    made = skeleton("random:tiny")
    assert {p.device.type for p in made.model.parameters()} == {"meta"}
    with torch.no_grad(), recon.capture(made.model) as recorder:
        made.model(**made.inputs)
    trace = recorder.trace
    sizes = {**made.sizes, "B": 1, "T": 1, "S": 1, "3D": 3 * made.sizes["D"], "1|B": 1}
    for part in PARTS:
        if "cross" not in part.name:
            shape = trace[part.name.replace("{l}", "1")].shape
            assert tuple(shape) == tuple(sizes[axis] for axis in part.shape.split())
