"""How an audit looks, and what its JSON, JUnit XML and SARIF say."""

import io
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from junitparser import JUnitXml
from rich.console import Console

from recon.auditing.findings import AuditReport, Finding, Judged
from recon.auditing.rules import RULES, rule
from recon.report.audit import (
    LONG_NAME,
    MANY_PLACES,
    MANY_TENSORS,
    abbreviated,
    render,
)
from recon.report.foreign import encodable, visible
from recon.report.json import audit_text, rules_text, schema_text
from recon.report.junit import junit_text
from recon.report.sarif import sarif_text
from tests.made_up import ENVIRONMENT

SARIF_SCHEMA = json.loads(
    (Path(__file__).parent / "data" / "sarif-2.1.0.schema.json").read_text("utf-8")
)
HOSTILE = {
    "markup": "[red]x[/red] [link=http://x]y",
    "newline": "a\nb\r\nc",
    "terminal": "\x1b[2J\x1b]0;title\x07\x9b1m",
    "emoji": "😀 :smile: \U0001f468\u200d\U0001f469",
    "cdata": "]]> <!-- <a b='c'> & &amp; \"",
    "surrogate": "half \ud83d and \udcff",
    "bidirectional": "abc\u202edef\u2066",
    "nul": "a\x00b\ufffe\uffff",
    "long": "x" * 5000,
    "wide": "漢" * 300,
    "placeholder": "layer_{0} [here](http://example.org) {l}",
    "blank": " \t\u00a0\u2028",
    "empty": "",
}


def judged(name, status="right", sentence="h.0.ln_1 (bit-identical)", claim="h.0.ln_1"):
    return Judged(name, status, claim, sentence, (2, 7, 32), "float32")


def finding(word, severity=None, message="something is off", **facts):
    found = rule(word)
    return Finding(found, message, severity or found.severity, **facts)


def report(*findings, tensors=(), **facts):
    facts = {"target": "hooks.py:capture", "model": "bundled", **facts}
    facts = {"runs": ("first prompt", "batch of 2"), **facts}
    return AuditReport(
        environment=ENVIRONMENT, findings=findings, tensors=tuple(tensors), **facts
    )


def swap(blocks=12):
    """Return the finding of a swap in every block, and the tensors that it is about."""
    names = tuple(f"blocks.{block}.attn.q" for block in range(blocks))
    found = finding(
        "RC101",
        message="q holds k",
        places=names,
        sites=tuple(f"h.{block}.attn.q" for block in range(blocks)),
        found=tuple(f"h.{block}.attn.k" for block in range(blocks)),
        run="first prompt",
        evidence={"max_abs": 3.21234, "checked": 12},
        mend="Split into q, k, v in this order.",
    )
    return found, [judged(name, "wrong", "holds the keys") for name in names]


def show(result, width=100, *, terminal=False, encoding="utf-8"):
    """Render as a terminal of some width, or a pipe, would show it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=stream,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(render(result, console=console))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def words(text):
    """Take colours and the breaks of lines away."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def cells(line):
    """Return how many columns of a terminal a line takes."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line)


# -- the verdict ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            report(tensors=[judged("a"), judged("b")]),
            "CLEAN: no findings; all 2 tensors are what the name says",
        ),
        (
            report(tensors=[judged("a")]),
            "CLEAN: no findings; the tensor is what the name says",
        ),
        (report(), "CLEAN: no findings; no tensor was judged"),
        (
            report(finding("RC302"), tensors=[judged("a"), judged("b", "unclaimed")]),
            "CLEAN: 1 note; 1 of 2 tensors right, 1 unclaimed",
        ),
        (
            report(finding("RC302"), strict=True),
            "FINDINGS: 1 note (strict: notes count); no tensor was judged",
        ),
        (
            report(
                finding("RC302"),
                finding("RC101"),
                finding("RC204"),
                finding("RC102"),
                tensors=[judged("a"), judged("b", "wrong"), judged("c", "unclaimed")],
            ),
            "FINDINGS: 2 errors, 1 warning, 1 note; "
            "1 of 3 tensors right, 1 wrong, 1 unclaimed",
        ),
    ],
)
def test_the_first_line_is_the_verdict_in_words(result, line):
    assert show(result).splitlines()[0].rstrip() == line


# -- findings ------------------------------------------------------------------


def test_a_finding_says_where_what_how_much_and_how_to_mend_it():
    found, tensors = swap()
    text = words(show(report(found, tensors=tensors)))
    for part in (
        "error RC101 wrong-site: q holds k",
        "at blocks.0.attn.q … blocks.11.attn.q (12 places)",
        "promised h.0.attn.q … h.11.attn.q (12 sites)",
        "found h.0.attn.k … h.11.attn.k (12 tensors)",
        "run first prompt",
        "evidence max_abs 3.212, checked 12",
        "mend Split into q, k, v in this order.",
        "more recon explain RC101",
    ):
        assert part in text


def test_what_a_finding_does_not_know_has_no_line():
    text = show(report(finding("RC209")))
    labels = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert labels == {"mend", "more"}


def test_without_words_of_its_own_a_finding_is_mended_as_its_rule_says():
    assert rule("RC209").mend in words(show(report(finding("RC209"))))
    own = show(report(finding("RC209", mend="Do this.")))
    assert "Do this." in own
    assert rule("RC209").mend not in words(own)


def test_errors_come_first_and_within_them_the_cause():
    codes = ["RC302", "RC204", "RC301", "RC101", "RC120"]
    text = show(report(*map(finding, codes)))
    shown = re.findall(r"^(?:error|warning|note) (RC\d+)", text, flags=re.MULTILINE)
    assert shown == ["RC301", "RC101", "RC204", "RC302", "RC120"]
    other = show(report(*map(finding, ["RC302", "RC101", "RC301"])))
    shown = re.findall(r"^(?:error|warning|note) (RC\d+)", other, flags=re.MULTILINE)
    assert shown == ["RC101", "RC301", "RC302"]


def test_the_severity_shown_is_the_findings_and_not_the_rules():
    assert "note RC204" in show(report(finding("RC204", "note")))


def test_a_few_places_are_listed_and_of_many_the_ends_and_the_count():
    names = [f"n{i}" for i in range(MANY_PLACES + 1)]
    few = show(report(finding("RC101", places=tuple(names[:-1]))))
    assert ", ".join(names[:-1]) in few
    many = show(report(finding("RC101", places=tuple(names))))
    assert f"n0 … n{MANY_PLACES} ({MANY_PLACES + 1} places)" in many
    twice = show(report(finding("RC101", places=("a", "a", "b"))))
    assert "at        a, b" in twice or "at    a, b" in twice


def test_a_traceback_is_shown_line_by_line():
    raised = 'Traceback:\n  File "hooks.py", line 3\nValueError: \x1b[31mno'
    lines = show(report(finding("RC403", traceback=raised))).splitlines()
    shown = [line.strip() for line in lines if line.startswith("    ")]
    assert shown[-3:] == [
        "Traceback:",
        'File "hooks.py", line 3',
        "ValueError: \\x1b[31mno",
    ]


# -- tensors -------------------------------------------------------------------


def rows(text):
    """Return the rows of the table of tensors, without its head."""
    lines = text[text.index("\ntensor ") :].splitlines()[2:]
    return [line.split() for line in lines[: lines.index("")]]


def spread(blocks):
    """Return three right tensors a block."""
    for block in range(blocks):
        for name, part in (("resid", "resid_post"), ("ln1", "ln_1"), ("ln2", "ln_2")):
            sentence = f"h.{block}.{part} (bit-identical)"
            yield judged(f"blocks.{block}.{name}", sentence=sentence)


def test_every_tensor_has_its_row_where_they_are_few():
    tensors = list(spread(13))
    assert len(tensors) <= MANY_TENSORS
    text = show(report(tensors=tensors))
    assert [row[0] for row in rows(text)] == [tensor.name for tensor in tensors]


def test_a_sentence_does_not_repeat_the_name_that_stands_beside_it():
    named = judged("x.3", sentence="`x.3` is h.3.ln_1 (bit-identical)")
    assert rows(show(report(tensors=[named])))[0][:3] == ["x.3", "right", "h.3.ln_1"]
    other = judged("x.3", "wrong", "holds nothing of `x.3` is")
    assert rows(show(report(tensors=[other])))[0][2] == "holds"


def test_many_right_tensors_that_differ_in_the_block_share_a_row():
    text = show(report(tensors=spread(14)))
    assert [" ".join(row) for row in rows(text)] == [
        "blocks.*.resid (14 tensors) right h.*.resid_post (bit-identical)",
        "blocks.*.ln1 (14 tensors) right h.*.ln_1 (bit-identical)",
        "blocks.*.ln2 (14 tensors) right h.*.ln_2 (bit-identical)",
    ]


def test_a_wrong_tensor_keeps_a_row_of_its_own_among_many():
    tensors = list(spread(20))
    tensors[7] = replace(tensors[7], status="wrong", sentence="h.3.ln_1")
    shown = {row[0]: row for row in rows(show(report(tensors=tensors)))}
    assert shown["blocks.2.ln1"] == ["blocks.2.ln1", "wrong", "h.3.ln_1"]
    assert shown["blocks.*.ln1"][1:3] == ["(19", "tensors)"]


def test_right_tensors_of_unlike_sentences_do_not_share_a_row():
    odd = judged("blocks.3.resid", sentence="h.3.resid_post (within 1.5e-07)")
    shown = [row[0] for row in rows(show(report(tensors=[*spread(14), odd])))]
    assert shown == ["blocks.*.resid", "blocks.*.ln1", "blocks.*.ln2", "blocks.3.resid"]


def test_of_very_many_tensors_the_rest_is_counted():
    wrong = [judged(f"w{i}", "wrong") for i in range(MANY_TENSORS + 7)]
    text = show(report(tensors=wrong))
    assert len(rows(text)) == MANY_TENSORS + 1
    assert "and 7 tensors more: --json lists every one" in text


# -- circumstances, terminals and pipes ----------------------------------------


def test_runs_environment_and_what_was_ignored_are_told():
    text = words(show(report(ignored=2, seconds=1.234)))
    for part in (
        "target hooks.py:capture",
        "model bundled (GPT2LMHeadModel)",
        "run float32, sdpa attention",
        "runs first prompt, batch of 2",
        "environment torch 2.13.0, transformers 5.23.0, cpu, 2 threads",
        "ignored 2 findings, on request",
        "time 1.23 s",
    ):
        assert part in text
    plain = words(show(report()))
    assert "ignored" not in plain
    assert "time" not in plain


@pytest.mark.parametrize("width", [50, 80, 100, 200])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_line_is_wider_than_the_terminal(width, kind):
    name = HOSTILE[kind]
    found = finding("RC101", message=name, places=(name,), sites=(name,), run=name)
    text = show(report(found, tensors=[judged(name, "wrong", name)]), width)
    assert max(map(cells, text.splitlines())) <= width


def test_a_pipe_gets_no_colours_and_a_terminal_does():
    found, tensors = swap()
    assert "\x1b" not in show(report(found, tensors=tensors))
    assert "\x1b[1;31mFINDINGS" in show(report(found, tensors=tensors), terminal=True)


def test_a_terminal_without_unicode_gets_ascii():
    found, tensors = swap()
    text = show(report(found, tensors=tensors), encoding="ascii")
    assert text.isascii()
    assert "blocks.0.attn.q ... blocks.11.attn.q" in text


# -- strings of others ---------------------------------------------------------


def hostile(name):
    """Return a report that has a string of others wherever there may be one."""
    found = finding(
        "RC101",
        message=name,
        places=(name, "b"),
        sites=(name, "h.0.ln_1"),
        found=(name, "ln_f"),
        run=name,
        mend=name,
        traceback=f"{name}\n{name}",
        evidence={name: 1.5, "words": name},
    )
    return report(
        found,
        finding("RC302", message=name),
        tensors=[judged(name, "wrong", name, name), judged("b")],
        target=name,
        model=name,
        runs=(name,),
        file="hooks.py",
        line=3,
    )


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_on_a_terminal_strings_of_others_are_text_and_nothing_else(kind, terminal):
    plain = re.sub(r"\x1b\[[0-9;]*m", "", show(hostile(HOSTILE[kind]), 200))
    assert all(c.isprintable() for c in plain.replace("\n", ""))
    assert "\ufffd" not in plain
    shown = visible(HOSTILE[kind])
    if len(shown) < 100:
        assert f"error RC101 wrong-site: {shown}".rstrip() in plain


def test_a_very_long_name_is_cut():
    assert abbreviated(["x" * 5000], "places") == "x" * LONG_NAME + "…"
    assert abbreviated(["x" * LONG_NAME], "places") == "x" * LONG_NAME


def test_an_escape_that_is_not_spelt_out_would_be_seen():
    assert visible("\x1b[2J") == "\\x1b[2J"
    assert not "\x1b".isprintable()


def strict_json(text):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    text.encode("utf-8")
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("kind", HOSTILE)
def test_json_holds_strings_of_others_whole(kind):
    name = HOSTILE[kind]
    document = strict_json(audit_text(hostile(name)))
    jsonschema.validate(document, json.loads(schema_text("audit")))
    assert document["target"] == document["tensors"][0]["name"] == encodable(name)
    assert encodable(name) == name or kind == "surrogate"
    assert document["findings"][0]["evidence"][encodable(name)] == 1.5
    json.dumps(document, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("kind", HOSTILE)
def test_junit_xml_is_well_formed_whatever_the_names(kind):
    name = HOSTILE[kind]
    text = junit_text(hostile(name))
    assert text.isascii()
    root = ElementTree.fromstring(text)
    assert root.find("testsuite/testcase").get("name") == visible(name)
    assert root.find(".//failure").get("message") == visible(name)
    assert JUnitXml.fromstring(text).tests == 4


@pytest.mark.parametrize("kind", HOSTILE)
def test_sarif_follows_its_schema_whatever_the_names(kind):
    name = HOSTILE[kind]
    document = strict_json(sarif_text(hostile(name)))
    jsonschema.validate(document, SARIF_SCHEMA)
    (location,) = document["runs"][0]["results"][0]["locations"]
    assert location["logicalLocations"][0]["name"] == encodable(name)
    json.dumps(document, ensure_ascii=False).encode("utf-8")


# -- JSON ----------------------------------------------------------------------


def test_json_has_every_fact_of_a_finding_and_of_a_tensor():
    found, tensors = swap(1)
    result = report(
        finding("RC302"), found, tensors=tensors, file="hooks.py", line=7, seconds=0.5
    )
    document = strict_json(audit_text(result))
    jsonschema.validate(document, json.loads(schema_text("audit")))
    assert document["findings"][0] == {
        "code": "RC101",
        "name": "wrong-site",
        "severity": "error",
        "counts": True,
        "message": "q holds k",
        "places": ["blocks.0.attn.q"],
        "sites": ["h.0.attn.q"],
        "found": ["h.0.attn.k"],
        "run": "first prompt",
        "evidence": {"max_abs": 3.21234, "checked": 12},
        "mend": "Split into q, k, v in this order.",
        "traceback": "",
    }
    assert document["findings"][1]["counts"] is False
    assert document["tensors"] == [
        {
            "name": "blocks.0.attn.q",
            "status": "wrong",
            "claim": "h.0.ln_1",
            "sentence": "holds the keys",
            "shape": [2, 7, 32],
            "dtype": "float32",
            "by": "",
        }
    ]
    assert (document["verdict"], document["file"], document["line"]) == (
        "findings",
        "hooks.py",
        7,
    )
    assert document["environment"]["dtype"] == "float32"


def test_notes_count_in_json_only_if_the_audit_is_strict():
    def counts(**facts):
        return strict_json(audit_text(report(finding("RC302"), **facts)))

    assert counts()["findings"][0]["counts"] is False
    assert counts(strict=True)["findings"][0]["counts"] is True
    assert (counts()["verdict"], counts(strict=True)["verdict"]) == (
        "clean",
        "findings",
    )


def test_figures_that_json_has_not_are_spelt_out():
    odd = {"a": float("inf"), "b": float("-inf"), "c": float("nan"), "d": 2}
    document = strict_json(audit_text(report(finding("RC111", evidence=odd))))
    assert document["findings"][0]["evidence"] == {
        "a": "inf",
        "b": "-inf",
        "c": "nan",
        "d": 2,
    }


@pytest.mark.parametrize(
    "wrong", [{"verdict": "fine"}, {"extra": 1}, {"schema_version": "2"}, {"line": "7"}]
)
def test_the_schema_of_an_audit_refuses_what_does_not_follow_it(wrong):
    document = strict_json(audit_text(report()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, **wrong}, json.loads(schema_text("audit")))


def test_rules_as_json_follow_their_schema_and_carry_their_pages():
    document = strict_json(rules_text(RULES))
    jsonschema.validate(document, json.loads(schema_text("explain")))
    assert [one["code"] for one in document["rules"]] == [r.code for r in RULES]
    assert document["rules"][0]["page"].startswith("# RC101 wrong-site")


# -- JUnit ---------------------------------------------------------------------


def cases(text):
    """Return, of each testcase, its outcome by suite and name."""
    outcomes = {}
    for suite in ElementTree.fromstring(text):
        for case in suite:
            tags = {part.tag for part in case} & {"failure", "skipped"}
            outcomes[suite.get("name"), case.get("name")] = tags or {"passed"}
    return outcomes


def test_a_tensor_fails_that_a_counting_finding_names():
    found, wrong = swap(2)
    tensors = [*wrong, judged("fine"), judged("mine", "unclaimed")]
    outcomes = cases(junit_text(report(found, finding("RC302"), tensors=tensors)))
    assert outcomes == {
        ("tensors", "blocks.0.attn.q"): {"failure"},
        ("tensors", "blocks.1.attn.q"): {"failure"},
        ("tensors", "fine"): {"passed"},
        ("tensors", "mine"): {"skipped"},
        ("findings", "RC101 wrong-site: q holds k"): {"failure"},
        ("findings", "RC302 graph-kept: something is off"): {"passed"},
    }


def test_a_right_tensor_fails_of_an_effect_that_concerns_it():
    found = finding("RC301", places=("a",))
    outcomes = cases(junit_text(report(found, tensors=[judged("a"), judged("b")])))
    assert outcomes["tensors", "a"] == {"failure"}
    assert outcomes["tensors", "b"] == {"passed"}


def test_notes_fail_in_junit_only_if_the_audit_is_strict():
    one = "findings", "RC302 graph-kept: something is off"
    assert cases(junit_text(report(finding("RC302"))))[one] == {"passed"}
    assert cases(junit_text(report(finding("RC302"), strict=True)))[one] == {"failure"}


def test_no_testcase_fails_where_the_verdict_is_clean():
    ignored = report(tensors=[judged("a", "wrong")], ignored=1)
    assert ignored.verdict == "clean"
    assert cases(junit_text(ignored)) == {("tensors", "a"): {"skipped"}}


def test_junit_counts_agree_with_an_independent_reader():
    found, wrong = swap(3)
    tensors = [*wrong, judged("fine"), judged("mine", "unclaimed")]
    result = report(
        found, finding("RC302"), tensors=tensors, seconds=1.5, file="a.py", line=4
    )
    read = JUnitXml.fromstring(junit_text(result))
    written = (read.tests, read.failures, read.errors, read.skipped)
    assert written == (7, 4, 0, 1)
    read.update_statistics()
    assert (read.tests, read.failures, read.errors, read.skipped) == written
    case = next(iter(next(iter(read))))
    assert (case.classname, case.name) == ("hooks.py:capture", "blocks.0.attn.q")
    assert case.result[0].type == "error RC101 wrong-site"
    assert "found: h.0.attn.k, h.1.attn.k, h.2.attn.k" in case.result[0].text
    root = ElementTree.fromstring(junit_text(result))
    assert (
        root.find(".//testcase").attrib.items() >= {"file": "a.py", "line": "4"}.items()
    )


def test_a_file_that_is_no_xml_would_be_seen():
    damaged = junit_text(report()).replace("</testsuites>", "\x00")
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(damaged)


# -- SARIF ---------------------------------------------------------------------


def sarif(result):
    document = strict_json(sarif_text(result))
    jsonschema.validate(document, SARIF_SCHEMA)
    (run,) = document["runs"]
    return run


def test_each_finding_is_a_result_of_its_rule():
    found, tensors = swap(2)
    findings = (finding("RC302"), found, finding("RC101"), finding("RC204"))
    run = sarif(report(*findings, tensors=tensors, file="hooks.py", line=4))
    told = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert told == [
        ("RC101", "error"),
        ("RC101", "error"),
        ("RC204", "warning"),
        ("RC302", "note"),
    ]
    rules = run["tool"]["driver"]["rules"]
    assert [r["id"] for r in rules] == ["RC101", "RC204", "RC302"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert rules[0]["help"]["markdown"].startswith("# RC101 wrong-site")
    assert rules[0]["shortDescription"]["text"] == rule("RC101").meaning


def test_a_result_says_file_line_names_and_sites():
    found, _ = swap(2)
    (result,) = sarif(report(found, file="hooks.py", line=4))["results"]
    assert result["message"]["text"] == (
        "q holds k. At blocks.0.attn.q, blocks.1.attn.q. "
        "Split into q, k, v in this order."
    )
    (location,) = result["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "hooks.py"},
        "region": {"startLine": 4},
    }
    assert location["logicalLocations"][1] == {
        "name": "blocks.1.attn.q",
        "fullyQualifiedName": "hooks.py:capture:blocks.1.attn.q",
        "properties": {"site": "h.1.attn.q"},
    }
    assert result["properties"]["evidence"] == {"max_abs": 3.21234, "checked": 12}


def test_what_is_not_known_of_the_place_is_left_out():
    nowhere, in_a_file = finding("RC209"), finding("RC209")
    assert sarif(report(nowhere))["results"][0]["locations"] == []
    (location,) = sarif(report(in_a_file, file="x.npz"))["results"][0]["locations"]
    assert location == {"physicalLocation": {"artifactLocation": {"uri": "x.npz"}}}


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("src/hooks.py", "src/hooks.py"),
        ("a b#c%.py", "a%20b%23c%25.py"),
        ("é.py", "%C3%A9.py"),
        ("half\udcff.py", "half%FF.py"),
        ("/tmp/a b.py", "file:///tmp/a%20b.py"),
    ],
)
def test_a_file_becomes_a_uri(file, uri):
    (result,) = sarif(report(finding("RC209"), file=file))["results"]
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"]["uri"] == uri


def test_names_in_a_message_are_no_placeholders_and_no_links():
    found = finding("RC209", message="{0} {l} [here](http://example.org)", mend="m")
    text = sarif(report(found))["results"][0]["message"]["text"]
    assert text == "{{0}} {l} \\[here](http://example.org). m."
    kept = finding("RC209", message="off at [0, 4]", mend="m")
    assert sarif(report(kept))["results"][0]["message"]["text"] == "off at [0, 4]. m."


def test_a_clean_audit_is_a_run_without_results():
    run = sarif(report(tensors=[judged("a")]))
    assert run["results"] == []
    assert run["properties"]["verdict"] == "clean"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("version",), "2.0.0"),
        (("runs", 0, "results", 0, "level"), "fatal"),
        (("runs", 0, "results", 0, "ruleIndex"), -2),
        (("runs", 0, "results", 0, "message"), "words"),
        (("runs", 0, "results", 0, "extra"), 1),
        (("runs", 0, "tool"), {}),
    ],
)
def test_the_schema_of_sarif_refuses_what_does_not_follow_it(path, wrong):
    document = json.loads(sarif_text(report(finding("RC209"))))
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SARIF_SCHEMA)
