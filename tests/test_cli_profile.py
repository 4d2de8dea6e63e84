"""What people and scripts get to see of ``recon profile``."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from rich.console import Console

import recon
from recon import cli
from recon.profiling.holders import Holder
from recon.profiling.leaks import Leak, Round
from recon.profiling.memory import Allocator
from recon.profiling.results import AGAIN
from recon.report.bytes import block_of, by_part, part_of
from recon.report.json import profile_text, schema_text
from recon.report.plot import profile_picture
from recon.report.profile import facts, render

PAGE = (Path(__file__).parents[1] / "docs" / "profile.md").read_text("utf-8")
QUICK = ("--rounds", "2", "--leak-rounds", "3")


@pytest.fixture(autouse=True)
def _alone(module_without_type_checks, quick_collections, monkeypatch, tmp_path):
    """No settings of the caller's shell, a directory of its own."""
    for name in ("RECON_TRACEBACK", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n# hooks.py\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "hooks.py").write_text(code.group(1), encoding="utf-8")


@pytest.fixture
def run(capsys):
    """Run ``recon profile`` and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["profile", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def found(make_model, make_ids, module_without_type_checks, quick_collections):
    model, ids = make_model(), make_ids()
    return recon.profile(model, inputs={"input_ids": ids}, rounds=2, leak_rounds=3)


def shown(profile, width=100):
    console = Console(width=width, highlight=False, emoji=False, markup=False)
    with console.capture() as text:
        console.print(render(profile, model="m", source="s", console=console))
    return text.get()


# -- commands ------------------------------------------------------------------------

COMMANDS = re.findall(r"^    recon (profile.*)$", PAGE, flags=re.MULTILINE)


def test_the_page_has_commands_to_check():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_does_what_the_page_says(command, run, tmp_path):
    code, out, err = run(*shlex.split(command)[1:], *QUICK)
    leaks = "--target" in command
    assert (code, err) == (1 if leaks else 0, "")
    assert ("held by hooks.kept[" in out) == leaks
    assert out.splitlines()[-1].startswith("LEAKS: 1 thing" if leaks else "CLEAN")
    if "--plot" in command:
        ElementTree.parse(tmp_path / "profile.svg")
        jsonschema.validate(
            json.loads((tmp_path / "profile.json").read_text("utf-8")),
            json.loads(schema_text("profile")),
        )


def test_the_finding_on_the_page_is_what_the_command_prints(run):
    (shown,) = re.findall(r"^      (\d+ tensors, .*)$", PAGE, flags=re.MULTILINE)
    _, out, _ = run("--target", "hooks.py:capture", "--rounds", "2")
    # Which entry is the first that stayed depends on how often the pass was timed.
    assert re.sub(r"\[\d+\]", "", shown) in re.sub(r"\[\d+\]", "", out)


def test_json_on_stdout_is_all_that_stdout_gets(run):
    code, out, _ = run("random:tiny", "--json", "-", "--dtype", "float64", *QUICK)
    document = json.loads(out)
    assert code == 0
    assert document["verdict"] == "clean"
    assert document["environment"]["dtype"] == "float64"
    assert document["memory"]["sites"][0]["held"] > 0
    assert [one["name"] for one in document["times"]][:2] == ["bare", AGAIN]


TELLS = """
import json

def capture(model, input_ids):
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()
    with open("seen.json", "w") as file:
        json.dump([input_ids.tolist(), float(weight.sum()), str(weight.device)], file)
    return model(input_ids).logits.detach()
"""


@pytest.fixture
def seen(run, tmp_path):
    """Profile a function that notes the ids, the weights and the device it is given."""
    (tmp_path / "tells.py").write_text(TELLS, encoding="utf-8")

    def with_options(*options):
        target = ("random:tiny", "--target", "tells.py:capture")
        assert run(*target, *options, *QUICK)[0] == 0
        return json.loads((tmp_path / "seen.json").read_text("utf-8"))

    return with_options


def test_text_ids_seed_and_device_reach_the_function(seen, tmp_path):
    (tmp_path / "ids.json").write_text("[[1, 2, 3, 4, 5]]", encoding="utf-8")
    ids, weights, device = seen("--input-ids", "ids.json", "--device", "cpu")
    assert (ids, device) == ([[1, 2, 3, 4, 5]], "cpu")
    words, same, _ = seen("--text", "the fox")
    longer, other, _ = seen("--text", "the fox runs away", "--seed", "3")
    assert len(words) == 1
    assert len(longer[0]) > len(words[0]) > 0
    assert same == weights != other


def test_attention_is_asked_for_and_a_picture_is_drawn_as_png(run, tmp_path):
    options = ("--attn", "eager", "--json", "p.json", "--plot", "p.png")
    assert run("random:tiny", *options, *QUICK)[0] == 0
    document = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert document["environment"]["attention"] == "eager"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_device_that_is_not_there_is_one_line_and_exit_2(run):
    code, out, err = run("random:tiny", "--device", "nowhere", *QUICK)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "nowhere" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "p.pdf"), "expected a file that ends in .png or .svg"),
        (("--plot", "nowhere/p.svg"), "--plot nowhere/p.svg: there is no directory"),
        (("--json", "nowhere/p.json"), "there is no directory"),
        (("--text", "a", "--input-ids", "b"), "give one of --text and --input-ids"),
        (("--target", "hooks.py"), "expected FILE.py:FUNCTION"),
        (("--target", "hooks.py:captur"), "did you mean capture?"),
        (("--rounds", "1"), "--rounds"),
        (("--leak-rounds", "2"), "--leak-rounds"),
        (("random:none",), "random:none is unknown"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments, words, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_function_that_raises_is_one_line_and_exit_2(run, tmp_path):
    code = 'def f(model, ids):\n    raise ValueError("no \\x1b[31mluck")\n'
    (tmp_path / "bad.py").write_text(code, encoding="utf-8")
    code, _, err = run("random:tiny", "--target", "bad.py:f", *QUICK)
    assert (code, len(err.splitlines())) == (2, 1)
    assert r"bad.py:f raised ValueError: no \x1b[31mluck" in err


# -- what is shown -------------------------------------------------------------------


def test_the_tables_hold_the_figures_of_the_profile(found):
    text = shown(found)
    assert "capture + certify" in text
    assert f"{found.memory.held:,} bytes for {found.memory.needed:,} needed" in text
    assert "h.*.attn.qkv" in text
    assert f"0 of {found.release.captured} storages alive" in text
    assert "there is no CUDA allocator" in text
    assert text.rstrip().endswith("CLEAN: what was captured came back, and every hook")


def test_a_noisy_machine_and_a_quiet_one_are_told_apart(found):
    bare, again, *others = found.times
    loud = replace(again, low=0.5, high=1.9)
    quiet = replace(again, low=1.0, high=1.0)
    clear = [replace(one, low=1.5, high=1.6) for one in others]
    said = shown(replace(found, times=(bare, loud, *clear)))
    assert "too noisy to tell what capture costs" in said
    assert said.count("within noise") == len(others)
    foreign = replace(found, times=(bare, loud, *clear), hook=None)
    assert "adds to a bare pass is within noise" in shown(foreign)
    said = shown(replace(found, times=(bare, quiet, *clear)))
    assert "too noisy" not in said
    assert "within noise" not in said
    foreign = replace(found, times=(bare, quiet, *clear), hook=None)
    assert "more than a bare pass" in shown(foreign)


def test_leaks_are_shown_with_their_holders_and_nothing_is_sent_to_the_terminal(found):
    leak = Leak(Holder("global", ("evil.\x1b[31mkept[0]",)), 2, 1234)
    leaky = replace(found, watch=replace(found.watch, leaks=(leak,)))
    text = shown(leaky)
    assert r"2 tensors, 1,234 bytes, held by evil.\x1b[31mkept[0]" in text
    assert text.rstrip().endswith("LEAKS: 1 thing stayed")
    (told,) = json.loads(profile_text(leaky, model="m", source="s"))["leak_watch"][
        "leaks"
    ]
    assert (told["kind"], told["count"], told["bytes"]) == ("global", 2, 1234)


def test_figures_of_a_gpu_are_shown_where_there_is_one(found):
    memory = replace(found.memory, allocator=Allocator(10, 2000, 30_000))
    text = shown(replace(found, memory=memory))
    assert "10 bytes allocated, 2,000 at the peak, 30,000 reserved" in text
    document = json.loads(
        profile_text(replace(found, memory=memory), model="m", source="s")
    )
    assert document["memory"]["allocator"]["peak"] == 2000


def test_names_are_joined_over_blocks():
    assert part_of("h.11.attn.z") == "h.*.attn.z"
    assert part_of("['layer_3'][0]") == "['layer_3'][*]"
    assert part_of("['h.3']") == "['h.*']"
    assert (block_of("h.11.attn.z"), block_of("wte")) == (11, None)


def test_bytes_of_a_part_are_those_of_its_sites(found):
    parts = by_part(found.memory.sites)
    assert sum(part.held for part in parts) == sum(s.held for s in found.memory.sites)
    assert {part.count for part in parts if part.name.startswith("h.*")} == {3}


def test_the_same_profile_draws_the_same_picture(found):
    assert profile_picture(found, "svg").startswith(b"<?xml")
    assert b"h.*.attn.qkv" in profile_picture(found, "svg")


def test_a_call_that_takes_no_more_than_noise_is_not_said_to_take_less(found):
    bare, again, *_ = found.times
    slower = replace(bare, name=found.target, seconds=bare.seconds + 1, low=9.0, high=9)
    quick = replace(bare, name=found.target, seconds=bare.seconds / 2)
    for last, said in ((quick, "within noise"), (slower, "1000000.0 us more than")):
        one = replace(
            found, hook=None, times=(bare, replace(again, low=1, high=1), last)
        )
        assert said in dict(facts(one))["hooks"]


def test_bytes_that_each_round_adds_are_told_in_full(found):
    rounds = tuple(Round(n * 122_880, 0, 0, 0) for n in range(4))
    one = replace(found, watch=replace(found.watch, rounds=rounds))
    assert (
        "a round adds 122,880 [122,880, 122,880] bytes"
        in dict(facts(one))["leak watch"]
    )
