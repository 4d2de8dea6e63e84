"""What the plots show is what the tensors say: data is tested, not pixels."""

import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import recon
from recon import cli
from recon.errors import UsageError
from recon.plotting import data, figures

TOKENS = tuple("abcdefg")
RESID = [f"h.{layer}.resid_post" for layer in range(3)]


@pytest.fixture
def trace(model):
    """One prompt of seven tokens."""
    with torch.no_grad(), recon.capture(model) as recorder:
        model(torch.tensor([[5, 1, 9, 4, 7, 2, 8]]))
    return recorder.trace


def changed(trace, place, edit):
    """Return a trace in which a copy of one site was edited."""
    tensor = trace[place].clone()
    edit(tensor)
    return trace.replace(place, tensor)


# -- data ------------------------------------------------------------------------


def test_correlations_are_those_of_numpy(trace):
    found = data.correlations(trace, "h.1.mlp.post", TOKENS)
    wanted = np.corrcoef(trace["h.1.mlp.post"][0].double().numpy())
    assert np.allclose(found.matrix, wanted, rtol=0, atol=1e-12)


def test_a_token_along_heads_has_all_their_neurons(trace):
    rows = data.rows(trace, "h.1.attn.q")
    assert rows.shape == (7, 32)
    assert np.array_equal(rows[3], trace["h.1.attn.q"][0, :, 3].flatten())


@pytest.mark.parametrize("value", [0.0, 3.25, float("nan"), float("inf")])
def test_a_row_without_spread_or_not_finite_has_no_correlation(trace, value):
    bad = changed(trace, RESID[1], lambda t: t[0, 2].fill_(value))
    found = data.correlations(bad, RESID[1], TOKENS)
    assert np.isnan(found.matrix[2]).all()
    assert np.isnan(found.matrix[:, 2]).all()
    others = np.delete(np.delete(found.matrix, 2, 0), 2, 1)
    assert np.isfinite(others).all()
    assert np.isnan(found.with_the_others[2])
    assert np.isfinite(np.delete(found.with_the_others, 2)).all()
    assert np.isnan(data.scatter(bad, RESID[1], (2, 3), TOKENS).r)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e20, 1e300])
def test_correlation_does_not_depend_on_scale(scale):
    values = np.random.default_rng(0).normal(size=(4, 50))
    found = data.correlation(values * scale)
    assert np.allclose(found, np.corrcoef(values), rtol=0, atol=1e-12)


def test_the_mean_correlation_with_the_others_leaves_the_token_out():
    matrix = np.array([[1, 0.5, 0.25], [0.5, 1, 0], [0.25, 0, 1]])
    found = data.Correlations("x", ("a", "b", "c"), matrix).with_the_others
    assert found.tolist() == [0.375, 0.25, 0.125]


def test_a_scatter_has_the_two_tokens_that_were_named(trace):
    found = data.scatter(trace, RESID[0], (1, -1), TOKENS)
    values = trace[RESID[0]][0].double().numpy()
    assert found.names == ("1 b", "6 g")
    assert np.array_equal(found.x, values[1])
    assert np.array_equal(found.y, values[6])
    assert found.r == pytest.approx(np.corrcoef(values[1], values[6])[0, 1], abs=1e-12)


def test_a_token_that_is_not_there_is_told(trace):
    with pytest.raises(UsageError, match="token 7: the prompt has 7 tokens, 0 to 6"):
        data.scatter(trace, RESID[0], (0, 7), TOKENS)


def test_sizes_find_a_planted_massive_activation(trace):
    big = changed(trace, RESID[1], lambda t: t[0, 4, 17].fill_(-1e4))
    found = data.sizes(big, RESID, TOKENS)
    assert (found.largest[1], found.dimension[1], found.position[1]) == (1e4, 17, 4)
    norms = trace[RESID[0]][0].double().norm(dim=1)
    assert np.allclose(found.norms[0], norms, rtol=1e-12)
    assert found.median[2] == pytest.approx(np.median(trace[RESID[2]][0].abs().numpy()))


def test_sizes_do_not_pass_over_what_is_no_number(trace):
    bad = changed(trace, RESID[1], lambda t: t[0, 4, 17].fill_(float("nan")))
    found = data.sizes(bad, RESID, TOKENS)
    assert np.isnan(found.largest[1])
    assert (found.dimension[1], found.position[1]) == (17, 4)


def test_patterns_are_all_heads_and_their_rows_sum_to_one(trace):
    found = data.patterns(trace, 1, TOKENS)
    assert np.array_equal(found.weights, trace["h.1.attn.pattern"][0].double())
    assert np.allclose(found.weights.sum(axis=2), 1, atol=1e-6)


def test_a_histogram_counts_every_value_of_every_pass(model):
    with torch.no_grad(), recon.capture(model, sites=RESID, keep="all") as recorder:
        for tokens in (3, 5, 1):
            model(torch.arange(tokens)[None])
    found = data.histogram(lambda: recorder.traces, RESID[2])
    values = torch.cat([t[RESID[2]].flatten() for t in recorder.traces]).double()
    assert (found.passes, found.values, found.dropped) == (3, 9 * 32, 0)
    assert found.counts.tolist() == np.histogram(values, found.edges)[0].tolist()
    assert found.counts.sum() == 9 * 32
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(values.std(correction=0)))


def test_a_histogram_counts_apart_what_is_not_finite(trace):
    bad = changed(trace, RESID[0], lambda t: t[0, 0, :3].fill_(float("nan")))
    found = data.histogram(lambda: [bad, trace], RESID[0])
    assert (found.dropped, found.values) == (3, 2 * 7 * 32 - 3)
    none = changed(trace, RESID[0], lambda t: t.fill_(float("inf")))
    with pytest.raises(UsageError, match="no finite value in 1 passes"):
        data.histogram(lambda: [none], RESID[0])


def two_prompts(model):
    ids = [5, 1, 9, 4, 7, 2, 8], [5, 1, 9, 3, 7, 2, 8]
    with torch.no_grad(), recon.capture(model, keep="all") as recorder:
        for row in ids:
            model(torch.tensor([row]))
    return recorder.traces, ids


def test_prompts_of_one_length_are_equal_until_they_part_and_not_after(model):
    traces, ids = two_prompts(model)
    found = data.prefix(traces, RESID, ids, (TOKENS, TOKENS))
    assert found.common == 3
    assert found.kept
    assert (found.apart[:, :3] == 0).all()
    assert (found.apart[:, 3:] > 0).all()


def test_a_difference_before_they_part_is_seen(model):
    traces, ids = two_prompts(model)
    bad = changed(traces[1], RESID[1], lambda t: t[0, 1, 4].add_(1e-3))
    found = data.prefix((traces[0], bad), RESID, ids, (TOKENS, TOKENS))
    assert not found.kept
    assert np.argwhere(~found.equal[:, :3]).tolist() == [[1, 1]]


def test_sites_without_neurons_of_a_token_are_refused(trace):
    with pytest.raises(UsageError, match="no neurons of a token"):
        data.correlations(trace, "h.0.attn.pattern", TOKENS)
    with pytest.raises(UsageError, match="sites of one shape"):
        data.sizes(trace, ["h.0.ln_1", "h.0.mlp.pre"], TOKENS)


# -- figures ----------------------------------------------------------------------


def every_figure(trace, tokens):
    some = [data.correlations(trace, place, tokens) for place in RESID]
    pair = (trace, trace.replace(RESID[2], trace[RESID[2]] + 1))
    ids = list(range(7))
    yield figures.draw_scatter(data.scatter(trace, RESID[0], (0, 1), tokens))
    yield figures.draw_correlations(some)
    yield figures.draw_correlations(some[:1])
    yield figures.draw_sizes(data.sizes(trace, RESID, tokens))
    yield figures.draw_patterns(data.patterns(trace, 0, tokens))
    yield figures.draw_histogram(data.histogram(lambda: [trace], RESID[0]))
    yield figures.draw_prefix(data.prefix(pair, RESID, (ids, ids), (tokens, tokens)))


@pytest.mark.parametrize("spoil", [None, float("nan"), 0.0])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_every_figure_is_written_without_a_warning(trace, tmp_path, spoil, suffix):
    if spoil is not None:
        for place in RESID[:2]:
            trace = changed(trace, place, lambda t: t[0, 1].fill_(spoil))
    tokens = figures.token_labels([" the", "\n", "$x$", "\u4e2d", "\ud800", "", "<b>"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, figure in enumerate(every_figure(trace, tokens)):
            path = tmp_path / f"{number}.{suffix}"
            figures.save(figure, path)
            head = path.read_bytes()
            if suffix == "png":
                assert head.startswith(b"\x89PNG")
            else:
                assert ET.fromstring(head).tag.endswith("svg")
    assert len(list(tmp_path.iterdir())) == 7


def test_what_is_drawn_is_the_data(trace):
    found = data.correlations(trace, RESID[0], TOKENS)
    axes = figures.draw_correlations([found]).axes[0]
    assert np.array_equal(axes.images[0].get_array(), found.matrix)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(TOKENS)
    dots = figures.draw_scatter(data.scatter(trace, RESID[0], (0, 1), TOKENS)).axes[0]
    assert np.array_equal(
        dots.collections[0].get_offsets()[:, 1], data.rows(trace, RESID[0])[1]
    )


def test_the_words_of_a_histogram_stand_above_its_bars(trace):
    found = data.histogram(lambda: [trace], RESID[0])
    figure = figures.draw_histogram(found)
    figure.canvas.draw()
    axes = figure.axes[0]
    words = axes.get_legend().get_window_extent().y0
    _, top = axes.transData.transform((found.mean, found.counts.max()))
    assert words > top


def test_marks_that_cannot_be_seen_are_spelt_out():
    assert figures.token_labels([" a", "\n", "\u4e2d", ""]) == (
        "\u00b7a",
        "\\n",
        "\\u4e2d",
        "(empty)",
    )


def test_a_place_or_a_suffix_that_will_not_do_is_told(trace, tmp_path):
    figure = figures.draw_histogram(data.histogram(lambda: [trace], RESID[0]))
    with pytest.raises(UsageError, match=r"ends with \.png or \.svg"):
        figures.save(figure, tmp_path / "a.pdf")
    with pytest.raises(UsageError, match="cannot be written"):
        figures.save(figure, tmp_path / "nowhere" / "a.png")
    assert not list(tmp_path.iterdir())


# -- the command line ---------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Run a command line and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.mark.parametrize(
    "arguments",
    [
        ["scatter", "--tokens", "0", "2"],
        ["correlations"],
        ["sizes"],
        ["attention"],
        ["histogram"],
        ["prefix", "--other", "the cat ran on a mat"],
    ],
)
def test_every_kind_is_drawn(run, tmp_path, arguments):
    out = tmp_path / "a.png"
    text = ["--text", "the cat sat on a mat", "--model", "random:tiny"]
    assert run("plot", *arguments, *text, "--out", out) == (0, "", "")
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sizes", "--out", "a.pdf"], "expected a name that ends with .png or .svg"),
        (["sizes", "--out", "nowhere/a.png"], "there is no directory nowhere"),
        (["sizes", "--out", "a.png", "--other", "x"], "prefix compares two prompts"),
        (["prefix", "--out", "a.png"], "prefix compares two prompts"),
        (
            ["scatter", "--out", "a.png", "--sites", "h.*.ln_1"],
            "scatter draws one site",
        ),
        (
            ["attention", "--out", "a.png", "--sites", "ln_f"],
            "attention draws h.0.attn",
        ),
        (["blob", "--out", "a.png"], "blob"),
    ],
)
def test_bad_usage_is_one_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("plot", *arguments, *["--model", "random:tiny"])
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_token_is_not_compared_with_itself(capsys, tmp_path):
    place = tmp_path / "x.png"
    with pytest.raises(SystemExit) as end:
        cli.main(["plot", "scatter", "--text", "a", "--out", str(place)])
    assert end.value.code == 2
    assert "scatter compares two tokens" in capsys.readouterr().err
    assert not place.exists()
