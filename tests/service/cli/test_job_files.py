"""Job files and --set: what people write is what is read, or it is refused with the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.cli.job_files.job_file import SpecFileError, load
from syncnorm.service.cli.job_files.overrides import override
from syncnorm.service.cli.job_files.yaml_reader import parse
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from tests.helpers.paths import EXAMPLES
from tests.helpers.service.api import SPEC, api
from tests.service.cli.test_progress import client_of

EXAMPLE_FILES = sorted(EXAMPLES.glob("*.yaml"))
READ = {
    "1e-3": 0.001,
    "1.0e12": 10**12,
    "1E4": 10_000,
    "+1e2": 100,
    "-2.5e-1": -0.25,
    ".5": 0.5,
    "5.": 5,
    "1.5": 1.5,
    "-7": -7,
    "1_000": 1000,
    "-2_000_000": -2_000_000,
    "1_0": "1_0",
    "2026_11_28": "2026_11_28",
    "0o17": 15,
    "017": 17,
    "0x1F": 31,
    "0b11": "0b11",
    "1:30": "1:30",
    "12:30:45": "12:30:45",
    "2026-11-28": "2026-11-28",
    "2026-11-28T10:00:00Z": "2026-11-28T10:00:00Z",
    "2001-99-99": "2001-99-99",
    "yes": "yes",
    "no": "no",
    "on": "on",
    "off": "off",
    "y": "y",
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "Nan": "Nan",
    "inf": "inf",
    "1e": "1e",
    "e3": "e3",
    "1.2.3": "1.2.3",
    "sha256:ab": "sha256:ab",
    "'1e-3'": "1e-3",
    '"no"': "no",
    "[1e-3, no, 2026-11-28]": [0.001, "no", "2026-11-28"],
    "{no: on}": {"no": "on"},
}


@pytest.mark.parametrize("text", READ)
def test_values_mean_the_same_in_a_file_and_on_the_command_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(f"a: {text}\n")
    spec: dict[str, Any] = {}

    override(spec, f"a={text}")

    wanted = {"a": READ[text]}
    assert load(tmp_path / "job.yaml") == wanted
    assert spec == wanted
    assert [type(one["a"]) for one in (spec, load(tmp_path / "job.yaml"))] == [type(READ[text])] * 2


def test_keys_are_text_as_written(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("labels: {2026-11-28: a, 7: b, no: c, 1e3: d}\n<<: {a: 1}\n")

    assert load(tmp_path / "job.yaml") == {
        "labels": {"2026-11-28": "a", "7": "b", "no": "c", "1e3": "d"},
        "<<": {"a": 1},
    }


def test_numbers_and_dates_make_a_valid_job() -> None:
    text = """
name: 2026-11-28
labels: {date: 2026-11-28, answer: no}
model: {name: resnet}
data: {name: digits, batch_size: 32}
optimizer: {lr: 1e-3, weight_decay: 5e-4}
train: {steps: 1e3}
limits: {deadline_s: 1_000}
"""
    spec = read_spec(parse(text, "job.yaml"))

    assert (spec.name, spec.labels) == ("2026-11-28", {"date": "2026-11-28", "answer": "no"})
    assert (spec.optimizer.lr, spec.train.steps, spec.limits.deadline_s) == (0.001, 1000, 1000)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": 7}, "got 7. Put it in quotes"), ({"export": {"fold": "yes"}}, "got 'yes'. Write true or false")],
)
def test_word_read_as_another_type_is_refused_with_the_cure(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_spec(SPEC | change)


@pytest.mark.parametrize("path", EXAMPLE_FILES, ids=lambda path: path.stem)
def test_examples_are_read_as_before(path: Path) -> None:
    assert load(path) == yaml.safe_load(path.read_text())


def test_json_with_tabs_and_escaped_characters_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{\n\t"name": "\\ud83d\\ude00",\n\t"lr": 1e-3\n}')

    assert load(tmp_path / "job.json") == {"name": "\U0001f600", "lr": 0.001}


def test_file_of_another_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbfname: a\r\nb: 1\r\n")

    assert load(tmp_path / "job.yaml") == {"name": "a", "b": 1}


BAD_FILES = {
    "alias": ("a: &x [1]\nb: *x", "line 2, column 4: YAML aliases"),
    "bomb": ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "line 2.*aliases"),
    "merge": ("base: &b {x: 1}\njob: {<<: *b}", "line 2.*aliases"),
    "python object": ("a: !!python/object/apply:os.system [id]", "the tag !!python/object.* leave it out"),
    "python name": ("a: !!python/name:os.system", "the tag !!python/name"),
    "timestamp": ("a: !!timestamp 2001-01-01", "the tag !!timestamp"),
    "binary": ("a: !!binary |\n  //79", "the tag !!binary"),
    "include": ("a: !include /etc/passwd", "the tag !include"),
    "deep": ("[" * 3000, "nested deeper than 32"),
    "deep mapping": ("{a: " * 3000, "nested deeper than 32"),
    "deep JSON": ('{"a": ' * 3000, "nested deeper than 32"),
    "deep whole JSON": ('{"a": ' * 40 + "1" + "}" * 40, "nested deeper than 32"),
    "unclosed": ("a: [1, 2", "not YAML: line 1"),
    "tab": ("a:\n\t- b", "line 2, column 1: a tab. Indent with spaces"),
    "two colons": ("name: a: b", "line 1, column 8"),
    "two documents": ("a: 1\n---\nb: 2", "one document, and a second one begins in line 2"),
    "list": ("- a", "must hold one job as a mapping.*got a list"),
    "number": ("7", "must hold one job as a mapping"),
    "empty": ("", "is empty. A job file holds one job"),
    "comment": ("# to do", "is empty"),
    "control": ("a: 1\nb: \x01", "line 2 holds the control character U\\+0001"),
    "long number": ("a: " + "1" * 5000, "at most 400 digits, got 5000"),
    "infinite": ("a: .inf", "line 1, column 4: a number must be finite, got .inf"),
    "not a number": ("b: 1\na: .NaN", "line 2.*must be finite"),
    "beyond floats": ("a: 1e999", "must be finite, got 1e999"),
    "JSON not a number": ('{"a": NaN}', "must be finite, got NaN"),
    "JSON beyond floats": ('{"a": 1e999}', "must be finite, got 1e999"),
    "twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' is given a second time, first in line 1"),
    "twice inside": ("a: {b: 1, b: 2}", "line 1, column 11: 'b' is given a second time"),
    "twice in JSON": ('{"a": 1,\n"a": 2}', "'a' is given a second time \\(line 1, 2\\)"),
    "half a character": ('a: "\\ud83d"', "half a character"),
    "list as key": ("? [a]\n: 1", "a key must be text"),
    "large": ("a: " + "x" * 2**16, "must not exceed"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_job_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    text, reason = BAD_FILES[name]
    (tmp_path / "job.yaml").write_text(text)

    with pytest.raises(SpecFileError, match=reason):
        load(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"name: caf\xe9", "must be UTF-8 text: line 1 holds the byte 0xe9"), ("name: a".encode("utf-16"), "UTF-8")],
)
def test_file_that_is_not_utf8_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "job.yaml").write_bytes(content)

    with pytest.raises(SpecFileError, match=reason):
        load(tmp_path / "job.yaml")


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path(), Path("missing.yaml"), Path("a\x00b")])
def test_what_is_no_job_file_is_refused(path: Path) -> None:
    with pytest.raises(SpecFileError, match=r"must not exceed|can't be read"):
        load(path)


def test_broken_json_file_is_told_as_json(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"a": 1,\n "b": }')

    with pytest.raises(SpecFileError, match=r"is not JSON: .*line 2 column 7"):
        load(tmp_path / "job.json")


def test_study_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("- base")

    with pytest.raises(SpecFileError, match="must hold one study"):
        load(tmp_path / "study.yaml", (), "study")


SET = {
    "optimizer.lr=1e-3": {"optimizer": {"lr": 0.001}},
    "labels.team=vision": {"labels": {"team": "vision"}},
    'labels["a.b"]=x': {"labels": {"a.b": "x"}},
    "labels['a.b']=x": {"labels": {"a.b": "x"}},
    "norm.overrides[0].kind=layer": {"norm": {"overrides": [{"kind": "layer"}]}},
    "norm.overrides[1].kind=layer": {"norm": {"overrides": [{"kind": "batch"}, {"kind": "layer"}]}},
    "norm.overrides[0]=null": {"norm": {"overrides": [None]}},
    "a.b[0][0].c=1": {"a": {"b": [[{"c": 1}]]}},
    "code.package=sha256:ab": {"code": {"package": "sha256:ab"}},
    "freeze=[a, '*.bn']": {"freeze": ["a", "*.bn"]},
    "text=*.bn": {"text": "*.bn"},
    "text=a #b": {"text": "a #b"},
    "text=a: b": {"text": "a: b"},
    "text=a=b": {"text": "a=b"},
    "text=": {"text": None},
    'text="1"': {"text": "1"},
    "data.init_args={a: [1, {b: 2}]}": {"data": {"init_args": {"a": [1, {"b": 2}]}}},
}


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("grid.norm.kind=[group]", {"norm.kind": ["group"]}),
        ("grid.norm.kind[1]=group", {"norm.kind": ["batch", "group"]}),
        ('grid["norm.kind"]=[group]', {"norm.kind": ["group"]}),
        ("grid.a.b,c.d[0][1]=3", {"a.b,c.d": [[1, 3]]}),
    ],
)
def test_setting_finds_an_axis_of_a_study_by_its_name(setting: str, changed: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"grid": {"norm.kind": ["batch"], "a.b,c.d": [[1, 2]]}}
    before = json.loads(json.dumps(spec["grid"]))

    override(spec, setting)

    assert spec == {"grid": before | changed}


@pytest.mark.parametrize("setting", SET)
def test_setting_goes_to_its_place(setting: str) -> None:
    spec: dict[str, Any] = {"norm": {"overrides": [{"kind": "batch"}]}, "code": None}
    before = json.loads(json.dumps(spec))

    override(spec, setting)

    assert spec == before | SET[setting]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("norm", "must be PATH=VALUE"),
        ("=1", "must be PATH=VALUE"),
        ("a..b=1", "must be PATH=VALUE"),
        (".a=1", "must be PATH=VALUE"),
        ("a[x]=1", "must be PATH=VALUE"),
        ("[0].a=1", r"a job has no \[0\]"),
        ("norm.overrides[2]=1", r"norm.overrides has 1 items; \[1\] adds the next one"),
        ("norm.overrides.kind=1", r"norm.overrides is a list; name an item, as in norm.overrides\[0\]"),
        ("name.x=1", "name is 'n', which has no fields"),
        ("norm[0]=1", r"norm is a mapping, which has no \[0\]"),
        ("a={b", "--set a is not YAML"),
        ("a={b: *c}", "--set a, line 1.*aliases"),
        ("a={b: 1, b: 2}", "given a second time"),
        ("a=1e999", "--set a: a number must be finite"),
    ],
)
def test_setting_that_has_no_place_is_refused(setting: str, reason: str) -> None:
    with pytest.raises(SpecFileError, match=reason):
        override({"name": "n", "norm": {"overrides": [{"kind": "batch"}]}}, setting)


def test_job_is_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        words = ["submit", "-", "--set", "name=2026-11-28", "--set", "optimizer.lr=1e-3", "--json"]
        done = CliRunner().invoke(cli.app, words, input=json.dumps(SPEC))
        empty = CliRunner().invoke(cli.app, ["plan", "-"], input=b"")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["name"] == "2026-11-28"
    assert json.loads(done.stdout)["spec"]["optimizer"]["lr"] == 0.001
    assert (empty.exit_code, "standard input is empty" in empty.stderr) == (2, True)
