"""A baseline tells what moved: nothing, rounding, or a change, and where first."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Model

import recon
from recon.baseline import files, fingerprints
from recon.baseline.checking import Allowances, compare
from recon.baseline.document import Baseline
from recon.baseline.findings import RULES
from recon.baseline.judging import moved_sites
from recon.baseline.recording import Observed, observe
from recon.errors import ReconciliationError, UsageError
from tests import versions

only_hooked = pytest.mark.skipif(
    not versions.HOOKED, reason="this transformers always ties the last state"
)
only_scaling = pytest.mark.skipif(
    not versions.SCALING, reason="attention has no attribute scaling"
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.json"


@pytest.fixture(scope="module")
def first(make_model, make_ids):
    """The run of the tiny model on its ids, as it is recorded."""
    return observe(make_model(), {"input_ids": make_ids()})


@pytest.fixture
def baseline(first):
    return first.baseline


@pytest.fixture
def recorded_file(file, baseline):
    files.write(baseline, file)
    return file


def edited(found, **fields):
    """Return a baseline with other fields."""
    return found.model_copy(update=fields)


def with_site(found, name, **fields):
    """Return a baseline with other fields at one site."""
    site = found.sites[name].model_copy(update=fields)
    return edited(found, sites={**found.sites, name: site})


def codes(report):
    return [finding.rule.code for finding in report.findings]


# -- nothing moved ---------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_run_is_bit_equal_at_every_site(make_model, ids, file, attention):
    model = make_model(attention=attention)
    baseline = recon.record_baseline(file, model, ids)
    report = recon.check_baseline(file, model).check()
    assert report.verdict == "equal"
    assert report.equal == len(baseline.sites) > 40
    assert not report.moved
    assert not report.notes


def test_every_captured_site_and_every_weight_has_a_fingerprint(
    model, ids, record, baseline
):
    found = baseline
    trace = record(model, ids).trace
    assert list(found.sites) == [str(site) for site in trace.tensors]
    assert list(found.weights) == [name for name, _, _ in trace.facts.weights_at_run]
    assert all(site.bound is not None for site in found.sites.values())


@pytest.mark.parametrize("kind", [GPT2Model, None])
def test_a_model_without_a_head_has_a_baseline_too(make_model, ids, file, kind):
    model = make_model(kind) if kind else make_model()
    found = recon.record_baseline(file, model, ids)
    assert ("logits" in found.sites) == (kind is None)
    assert recon.check_baseline(file, model).verdict == "equal"


def test_recording_and_checking_leave_the_model_and_the_generator_alone(
    model, ids, file
):
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    recon.record_baseline(file, model, ids)
    recon.check_baseline(file, model)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


# -- rounding --------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, [[0, 0, 1, 1, 1, 1, 1]] * 2 + [[1] * 7]])
def test_another_attention_implementation_is_told_as_rounding_from_z_on(
    make_model, ids, file, mask
):
    # Left padding: there are rows that may attend to no key, zero in one kernel and
    # uniform in the other. They are nobody's to judge.
    inputs = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    recon.record_baseline(file, make_model(attention="sdpa"), ids, **inputs)
    report = recon.check_baseline(file, make_model(attention="eager")).check()
    assert report.verdict == "rounding"
    first = report.moved[0]
    assert first.site == "h.0.attn.z"
    assert first.kind == "rounding"
    assert first.ratio is not None
    assert 0 < first.ratio < 1
    assert "attention is eager, was sdpa" in report.notes
    assert "h.0.attn.z" in report.conclusion()


def test_a_pattern_that_only_one_kernel_shows_is_no_finding(make_model, ids, file):
    recon.record_baseline(file, make_model(attention="eager"), ids)
    report = recon.check_baseline(file, make_model(attention="sdpa"))
    assert any("pattern" in name for name in report.then.sites)
    assert not any("pattern" in name for name in report.now.sites)
    assert report.verdict == "rounding"


def test_a_pattern_that_vanishes_under_one_kernel_is_a_finding(first):
    then = first
    sites = dict(then.baseline.sites)
    del sites["h.1.attn.pattern"]
    lacking = Observed(edited(then.baseline, sites=sites), then.report)
    report = compare("x", then.baseline, lacking, Allowances())
    assert codes(report) == ["RB102"]
    back = compare("x", lacking.baseline, then, Allowances())
    assert codes(back) == ["RB103"]


# -- changed, and where ----------------------------------------------------------


def flip_a_bit(model):
    weight = model.transformer.h[1].mlp.c_fc.weight
    with torch.no_grad():
        weight.view(torch.int32)[3, 5] ^= 1


def drop_a_head(model):
    with torch.no_grad():
        model.transformer.h[2].attn.c_proj.weight[:8] = 0


def drop_a_head_by_hook(model):
    def without(module, args):
        z = args[0].clone()
        z[..., :8] = 0
        return (z, *args[1:])

    model.transformer.h[2].attn.c_proj.register_forward_pre_hook(without)


def untie(model):
    model.config.tie_last_hidden_states = False


def other_eps(model):
    model.transformer.h[1].ln_2.eps = 1e-4


def other_scale(model):
    model.transformer.h[1].attn.scaling *= 1.01


def other_activation(model):
    model.transformer.h[1].mlp.act = torch.nn.GELU()


def swapped_norms(model):
    block = model.transformer.h[1]
    block.ln_1, block.ln_2 = block.ln_2, block.ln_1


@pytest.mark.parametrize(
    ("fault", "code", "place", "first_moved", "kind"),
    [
        (
            flip_a_bit,
            "RB104",
            "transformer.h.1.mlp.c_fc.weight",
            "h.1.mlp.pre",
            "weights",
        ),
        (
            drop_a_head,
            "RB104",
            "transformer.h.2.attn.c_proj.weight",
            "h.2.attn.out",
            "weights",
        ),
        (drop_a_head_by_hook, "RB101", "h.2.attn.z", "h.2.attn.z", "changed"),
        pytest.param(untie, "RB107", "hidden_states.3", None, None, marks=only_hooked),
        (other_eps, "RB101", "h.1.ln_2", "h.1.ln_2", "changed"),
        pytest.param(
            other_scale,
            "RB101",
            "h.1.attn.pattern",
            "h.1.attn.pattern",
            "changed",
            marks=only_scaling,
        ),
        (other_activation, "RB101", "h.1.mlp.post", "h.1.mlp.post", "changed"),
        (
            swapped_norms,
            "RB104",
            "transformer.h.1.ln_1.weight",
            "h.1.ln_1",
            "weights",
        ),
    ],
)
def test_a_change_is_told_at_its_place(
    model, recorded_file, fault, code, place, first_moved, kind
):
    fault(model)
    report = recon.check_baseline(recorded_file, model)
    assert report.verdict == "changed"
    assert report.findings[0].rule.code == code
    assert report.findings[0].places[0] == place
    assert [one.site for one in report.moved[:1]] == [first_moved] * bool(first_moved)
    assert [one.kind for one in report.moved[:1]] == [kind] * bool(kind)
    # What comes after follows from it: it is not told again.
    later = {one.kind for one in report.moved[1:]}
    assert later <= {"follows"} or fault in (swapped_norms, other_scale)
    with pytest.raises(recon.BaselineError, match=place.replace(".", r"\.")):
        report.check()


def test_other_weights_are_told_apart_from_other_behaviour(make_model, recorded_file):
    report = recon.check_baseline(recorded_file, make_model(seed=1))
    assert codes(report) == ["RB104"]
    assert {one.kind for one in report.moved} <= {"weights", "follows"}
    model = make_model(seed=1)
    other_eps(model)
    assert codes(recon.check_baseline(recorded_file, model))[:2] == ["RB104", "RB101"]


def test_a_weight_that_no_site_looks_at_is_told_too(make_model, ids, file):
    recon.record_baseline(file, make_model(tie_word_embeddings=False), ids)
    model = make_model(tie_word_embeddings=False)
    unused = (set(range(97)) - set(ids.flatten().tolist())).pop()
    with torch.no_grad():
        model.transformer.wte.weight[unused, 0] += 1
    report = recon.check_baseline(file, model)
    assert not report.moved
    assert codes(report) == ["RB104"]
    assert report.findings[0].places == ("transformer.wte.weight",)


def test_float16_for_float32_is_told_at_the_embeddings_as_two_causes(
    make_model, recorded_file
):
    report = recon.check_baseline(recorded_file, make_model(dtype=torch.float16))
    assert codes(report) == ["RB104", "RB101"]
    assert report.findings[0].places[0] == "transformer.wte.weight"
    assert report.findings[1].places[0] == "wte"
    assert "float16, was float32" in report.findings[1].message
    assert "dtype is float16, was float32" in report.notes


def test_a_block_that_is_gone_is_told_by_its_first_site(make_model, recorded_file):
    report = recon.check_baseline(recorded_file, make_model(n_layer=2))
    assert {"RB102", "RB104", "RB107"} <= set(codes(report))
    vanished = next(f for f in report.findings if f.rule.code == "RB102")
    assert vanished.places[0] == "h.2.resid_pre"
    assert "blocks is 2, was 3" in report.notes


def test_a_hook_that_is_new_on_the_model_is_told_even_if_it_does_nothing(
    model, ids, recorded_file
):
    handle = model.transformer.h[0].register_forward_hook(lambda *seen: None)
    report = recon.check_baseline(recorded_file, model)
    assert codes(report) == ["RB108"]
    assert "h.0" in report.findings[0].message
    handle.remove()
    assert recon.check_baseline(recorded_file, model).verdict == "equal"


def test_a_hook_that_the_run_leaves_behind_is_told(model, recorded_file):
    block = model.transformer.h[0]

    def leaves_one(module, args, output):
        if not block._forward_pre_hooks:
            block.register_forward_pre_hook(lambda *seen: None)

    model.transformer.ln_f.register_forward_hook(leaves_one)
    report = recon.check_baseline(recorded_file, model)
    told = [f.message for f in report.findings if f.rule.code == "RB108"]
    assert any("left behind by the run" in words for words in told), told


# -- the rule itself, on documents -------------------------------------------------


def nudged(baseline, name, by, sha="f" * 32):
    """Return the same run with one site off by ``by`` times what is allowed."""
    site = baseline.sites[name]
    room = fingerprints.allowed(2 * site.bound, math.prod(site.shape))
    sums = [site.projection[0] + by * room, *site.projection[1:]]
    return with_site(baseline, name, projection=sums, sha256=sha)


@pytest.mark.parametrize(("by", "kind"), [(0.9, "rounding"), (1.1, "changed")])
def test_with_bit_equal_inputs_the_bound_decides(baseline, by, kind):
    (one,) = moved_sites(baseline, nudged(baseline, "h.1.mlp.pre", by))
    assert one.kind == kind
    assert one.ratio == pytest.approx(by, rel=1e-3)


def test_with_inputs_that_moved_the_bound_says_nothing(baseline):
    now = nudged(nudged(baseline, "h.1.ln_2", 0.5), "h.1.mlp.pre", 1e6)
    first, second = moved_sites(baseline, now)
    assert (first.kind, second.kind) == ("rounding", "follows")
    assert second.ratio is None


def test_what_was_never_certified_is_not_taken_for_rounding(baseline):
    then = with_site(baseline, "h.1.mlp.pre", holds="unverified")
    (one,) = moved_sites(then, nudged(then, "h.1.mlp.pre", 0.5))
    assert one.kind == "unproven"
    then = with_site(baseline, "h.1.mlp.pre", bound=None)
    now = with_site(then, "h.1.mlp.pre", sha256="f" * 32)
    (one,) = moved_sites(then, now)
    assert one.kind == "unproven"


def test_a_projection_that_is_no_number_is_a_change(baseline):
    now = with_site(baseline, "h.1.mlp.pre", projection=[math.nan] * 4, sha256="f" * 32)
    (one,) = moved_sites(baseline, now)
    assert (one.kind, one.ratio) == ("changed", math.inf)


def test_a_lookup_may_not_round(baseline):
    site = baseline.sites["wte"]
    assert site.bound == 0.0
    sums = [site.projection[0] * (1 + 1e-9), *site.projection[1:]]
    now = with_site(baseline, "wte", projection=sums, sha256="f" * 32)
    assert next(iter(moved_sites(baseline, now))).kind == "changed"


# -- absence never passes ----------------------------------------------------------


def test_a_skipped_check_is_a_finding(first, model, ids):
    then = first
    model.transformer.h[1].mlp.act = torch.nn.Softsign()
    now = observe(model, {"input_ids": ids})
    report = compare("x", then.baseline, now, Allowances())
    assert {"RB101"} == set(codes(report))
    # Bit-equal, but no longer proven: made of the new run's own values.
    same = edited(
        now.baseline,
        sites={
            name: site.model_copy(update={"holds": "rounding"})
            for name, site in now.baseline.sites.items()
        },
    )
    report = compare("x", same, now, Allowances())
    assert codes(report) == ["RB105"]
    assert "Softsign" in report.findings[0].message


def test_a_run_without_the_baselines_sites_is_a_finding(first):
    found = first
    empty = Observed(edited(found.baseline, sites={}), found.report)
    report = compare("x", found.baseline, empty, Allowances())
    assert codes(report)[0] == "RB112"
    assert report.wrong


def test_a_run_without_checks_is_a_finding(first):
    found = first
    unchecked = Observed(found.baseline, replace(found.report, checks=()))
    report = compare("x", found.baseline, unchecked, Allowances())
    assert codes(report) == ["RB112"]
    with pytest.raises(UsageError, match="stays as it was"):
        recon.accept_baseline(report)


def test_a_report_is_neither_true_nor_false(first):
    with pytest.raises(TypeError, match="verdict"):
        bool(compare("x", first.baseline, first, Allowances()))


# -- bytes -----------------------------------------------------------------------


def test_more_bytes_than_allowed_are_a_finding_and_fewer_a_note(first):
    found = first
    kept = found.baseline.kept_bytes
    then = edited(found.baseline, kept_bytes=int(kept / 1.2))
    assert codes(compare("x", then, found, Allowances())) == ["RB109"]
    assert not codes(compare("x", then, found, Allowances(bytes=0.3)))
    assert not codes(compare("x", then, found, Allowances(bytes=None)))
    more = edited(found.baseline, kept_bytes=2 * kept)
    report = compare("x", more, found, Allowances())
    assert not report.findings
    assert any("fewer" in note for note in report.notes)


# -- recording ---------------------------------------------------------------------


def test_a_run_that_is_wrong_by_itself_is_not_recorded(model, ids, file):
    drop_a_head_by_hook(model)
    with pytest.raises(ReconciliationError, match=r"h\.2\.attn\.z"):
        recon.record_baseline(file, model, ids)
    assert not file.exists()


def test_a_run_that_is_wrong_by_itself_is_not_accepted(model, recorded_file):
    before = recorded_file.read_bytes()
    drop_a_head_by_hook(model)
    report = recon.check_baseline(recorded_file, model)
    with pytest.raises(UsageError, match="wrong by itself"):
        recon.accept_baseline(report)
    assert recorded_file.read_bytes() == before


def test_what_moved_can_be_accepted(make_model, recorded_file):
    model = make_model()
    other_eps(model)
    recon.accept_baseline(recon.check_baseline(recorded_file, model))
    assert recon.check_baseline(recorded_file, model).verdict == "equal"
    assert codes(recon.check_baseline(recorded_file, make_model()))


def test_a_model_in_train_mode_is_refused(model, ids, file):
    with pytest.raises(UsageError, match="train mode"):
        recon.record_baseline(file, model.train(), ids)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "integer inputs"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"\(3,\)"),
        ({"input_ids": [[1, 2]]}, "list"),
        ({}, "input_ids"),
    ],
)
def test_inputs_that_a_file_cannot_hold_are_refused(
    model, file, inputs, words, without_type_checks
):
    with pytest.raises(UsageError, match=words):
        recon.record_baseline(file, model, **inputs)
    assert not file.exists()


def test_a_check_on_other_inputs_is_refused(model, ids, recorded_file):
    assert recon.check_baseline(recorded_file, model, ids).verdict == "equal"
    for other in ({"input_ids": ids + 1}, {"attention_mask": torch.ones_like(ids)}):
        with pytest.raises(UsageError, match="other inputs"):
            recon.check_baseline(recorded_file, model, **other)


def test_all_integer_inputs_are_kept(model, ids, file):
    mask, positions = torch.ones_like(ids), torch.arange(7).expand(3, 7)
    mask[0, :2] = 0
    inputs = {"attention_mask": mask, "position_ids": positions, "token_type_ids": ids}
    recon.record_baseline(file, model, ids, **inputs)
    assert set(files.read(file).inputs) == {"input_ids", *inputs}
    assert recon.check_baseline(file, model, ids, **inputs).verdict == "equal"


# -- the file ------------------------------------------------------------------------


def test_a_baseline_comes_back_as_it_was_and_a_site_is_one_line(recorded_file, model):
    found = files.read(recorded_file)
    assert files.text(found) == recorded_file.read_text("utf-8")
    lines = recorded_file.read_text("utf-8").splitlines()
    numbers = files.lines_of(recorded_file)
    assert '"h.1.attn.z"' in lines[numbers["h.1.attn.z"] - 1]
    assert len({numbers[name] for name in found.sites}) == len(found.sites)
    assert len(recorded_file.read_bytes()) < 60_000


def test_recording_twice_writes_the_same_file(model, ids, tmp_path):
    for name in ("a", "b"):
        recon.record_baseline(tmp_path / name, model, ids)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_file_laid_out_anew_is_still_ours(recorded_file, model):
    plain = json.loads(recorded_file.read_text("utf-8"))
    recorded_file.write_text(json.dumps(plain, indent=1, sort_keys=True))
    assert recon.check_baseline(recorded_file, model).verdict == "equal"


def _edit(path, **fields):
    plain = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps(plain))


def _resigned(path, **fields):
    """Edit a file as someone would who knows the digest."""
    plain = json.loads(path.read_text("utf-8")) | fields
    plain["digest"] = files.digest(plain)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: _edit(p, kept_bytes=10**9), "does not match its digest"),
        (lambda p: _edit(p, schema_version=2), "schema version 2.*upgrade recon"),
        (lambda p: _edit(p, schema_version="1"), "schema version 1"),
        (lambda p: _edit(p, format="other"), "no baseline recorded by recon"),
        (lambda p: p.write_text("[1, 2]"), "no baseline recorded by recon"),
        (lambda p: p.write_text("<<<<<<< HEAD\n{}"), "damaged.*no JSON"),
        (lambda p: p.write_text(p.read_text("utf-8")[:-20]), "damaged"),
        (lambda p: p.write_text('{"format": "a", "format": "b"}'), "occurs twice"),
        (lambda p: p.write_text('{"format": NaN}'), "NaN is no number"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "damaged"),
        (lambda p: p.write_text("[" * 100_000), "damaged"),
        (lambda p: p.write_text(""), "damaged"),
        (lambda p: p.unlink(), "no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "no such file"),
        (lambda p: _resigned(p, sites={}), "is empty"),
        (lambda p: _resigned(p, weights={}), "is empty"),
        (lambda p: _resigned(p, inputs={}), "is empty"),
        (lambda p: _resigned(p, inputs={"input_ids": []}), "is empty"),
        (lambda p: _resigned(p, extra=1), "damaged: extra"),
        (lambda p: _resigned(p, kept_bytes="many"), "damaged: kept_bytes"),
    ],
)
def test_a_file_that_is_no_sound_baseline_is_refused_in_one_line(
    recorded_file, model, damage, words
):
    damage(recorded_file)
    with pytest.raises(UsageError, match=words) as error:
        recon.check_baseline(recorded_file, model)
    assert "\n" not in str(error.value)
    assert recorded_file.name in str(error.value)


def test_every_single_changed_digit_of_a_file_is_noticed(recorded_file):
    text = recorded_file.read_text("utf-8")
    places = [i for i, mark in enumerate(text) if mark.isdigit()][:: len(text) // 97]
    assert len(places) > 20
    for place in places:
        other = str((int(text[place]) + 1) % 10)
        recorded_file.write_text(text[:place] + other + text[place + 1 :])
        try:
            found = files.read(recorded_file)
        except UsageError:
            continue
        # The last of seventeen digits may name the same number.
        assert files.text(found) == text


@pytest.mark.parametrize("where", ["nowhere/x.json", "."])
def test_a_place_that_cannot_be_written_is_told_and_nothing_is_left(
    model, ids, tmp_path, where
):
    with pytest.raises(UsageError, match="directory"):
        recon.record_baseline(tmp_path / where, model, ids)
    assert not list(tmp_path.iterdir())


def test_writing_that_fails_halfway_leaves_the_old_file(
    recorded_file, model, monkeypatch
):
    before = recorded_file.read_bytes()
    found = files.read(recorded_file)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(UsageError, match="No space left"):
        files.write(found, recorded_file)
    assert recorded_file.read_bytes() == before
    assert list(recorded_file.parent.iterdir()) == [recorded_file]


def test_the_rules_have_codes_of_their_own():
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert not {rule.code for rule in RULES} & {
        rule.code for rule in recon.auditing.rules.RULES
    }


# -- fingerprints ------------------------------------------------------------------


def test_a_difference_at_one_element_is_each_sum_of_it():
    x = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[1, 20, 3] += 0.25
    gap = fingerprints.gap(fingerprints.project(x, "a"), fingerprints.project(y, "a"))
    moved = float((y.double() - x.double()).abs().max())
    assert gap == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 8, 65, 2**16, 2**16 + 1, 150_001])
def test_the_sums_are_those_of_exact_arithmetic(dtype, count):
    generator = torch.Generator().manual_seed(count)
    wild = torch.randn(count, generator=generator, dtype=torch.float64)
    x = (wild * 10 ** (3 * wild.roll(1))).clamp(-1e30, 1e30).to(dtype)
    sums = fingerprints.project(x, "name")
    words = list(fingerprints._random_words("name", count))
    signs = fingerprints._signs(words, 0, count)
    exact = [math.fsum(row * x.double().numpy()) for row in signs]
    most = float(x.abs().max())
    for found, expected in zip(sums, exact, strict=True):
        room = fingerprints.own_error([expected], most, count)
        assert abs(found - expected) <= room <= 1e-9 * most * math.sqrt(count)


def test_signs_are_fair_differ_by_name_and_stay_the_same():
    words = list(fingerprints._random_words("h.0.ln_1", 4096))
    signs = fingerprints._signs(words, 0, 4096)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.05
    assert abs((signs @ signs.T)[0, 1]) < 300
    other = list(fingerprints._random_words("h.0.ln_2", 4096))
    assert (fingerprints._signs(other, 0, 4096) != signs).any()
    # A file recorded today is read tomorrow: these must never change.
    assert signs[0, :16].tolist() == PINNED


PINNED = [-1, -1, 1, 1, -1, -1, -1, 1, 1, 1, 1, -1, 1, -1, 1, -1]


def test_what_is_not_finite_has_no_sums_and_zero_has_zero():
    assert all(
        map(math.isnan, fingerprints.project(torch.tensor([1.0, math.inf]), "a"))
    )
    assert fingerprints.project(torch.zeros(5), "a") == [0.0] * 4
    assert fingerprints.gap([math.nan], [0.0]) == math.inf
    assert fingerprints.distance([math.nan], [0.0], 1.0) == math.inf
    assert fingerprints.distance([0.0], [0.0], 0.0) == 0.0
    assert fingerprints.distance([1.0], [0.0], 0.0) == math.inf


def test_the_estimated_distance_is_about_the_true_one():
    estimates = []
    for seed in range(200):
        x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
        y = x + 0.01 * torch.randn(
            500, generator=torch.Generator().manual_seed(-seed - 1)
        )
        sums = [fingerprints.project(t, str(seed)) for t in (x, y)]
        true = float((y - x).norm())
        estimates.append(fingerprints.distance(*sums, true))
    assert 0.9 < sum(e * e for e in estimates) / len(estimates) < 1.1


def test_a_baseline_is_frozen(baseline):
    assert isinstance(baseline, Baseline)
    with pytest.raises(Exception, match="frozen"):
        baseline.kept_bytes = 1
    assert copy.deepcopy(baseline) == baseline
