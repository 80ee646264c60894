"""Whatever is given, it is taken or refused in a sentence: random settings, files, command lines.

The examples are the same in every run. Few of them are tried by default, many with `SLOW=1`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import NEWEST, REPORTED

from analysis.cli import app, main
from analysis.core.errors import CachelabError, EngineError, ModelError, WorkloadError
from analysis.engine import EngineConfig
from analysis.model.artifacts import load_model, shipped_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.shortfin import devices
from analysis.shortfin.releases import KNOWN
from analysis.sweep.plan import Plan
from analysis.workloads.workload import Workload

LONGEST_SENTENCE = 2000


def try_examples(count: int, strategy: Any, check: Callable[..., None]) -> None:
    """Check as many examples of a strategy, the same in every run."""
    chosen = settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    chosen(given(strategy)(check))()


def examples(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def is_a_sentence(error: Exception) -> None:
    reply = str(error)
    assert reply.endswith("."), reply
    assert len(reply.splitlines()) == 1, reply
    assert len(reply) < LONGEST_SENTENCE, reply


NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from([31, 64, 20_000]).map(lambda bits: 2**bits),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "So"]), max_size=4),
    st.sampled_from(["", "~nobody/x", "a" * 300, "a\0b", "none", "trie", "auto", "amdgpu",
                     "local-task", "gfx942", "gfx000"]),
)  # fmt: skip
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    PLAIN | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=6,
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def settings_of(kind: Any, **required: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return some of a dataclass's fields, each with anything."""
    optional = dict.fromkeys(kind.__dataclass_fields__, ANYTHING)
    return st.fixed_dictionaries(required, optional={k: v for k, v in optional.items()
                                                     if k not in required})  # fmt: skip


@examples(150, 2000)
def test_engine_settings_are_taken_or_refused(count: int) -> None:
    def check(values: dict[str, Any]) -> None:
        try:
            config = EngineConfig(**values)
            devices.resolve(config.device, config.hip_target, config.device_ids)
        except EngineError as error:
            is_a_sentence(error)
        else:
            plain = {**vars(config), "model": str(config.model) if config.model else None,
                     "device_ids": list(config.device_ids),
                     "batch_sizes": list(config.batch_sizes)}  # fmt: skip
            assert EngineConfig.from_json(plain) == config or config.options

    try_examples(count, settings_of(EngineConfig), check)


@examples(100, 1000)
def test_plans_are_taken_or_refused(count: int) -> None:
    def check(values: dict[str, Any]) -> None:
        try:
            Plan(**values)
        except CachelabError as error:
            is_a_sentence(error)

    try_examples(count, settings_of(Plan, releases=st.just((NEWEST,)) | ANYTHING), check)


ROWS = st.fixed_dictionaries(
    {"prompt": st.just("1 2 ") | JSON},
    optional=dict.fromkeys(("id", "max_new_tokens", "expected", "arrival_s", "family", "x"), JSON),
)
LINES = st.one_of(
    ROWS.map(json.dumps).map(str.encode),
    JSON.map(json.dumps).map(str.encode),
    st.binary(max_size=30),
    st.integers(1, 100_000).map(lambda deep: b"[" * deep),
)


@examples(150, 2000)
def test_workload_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    file, again = tmp_path / "w.jsonl", tmp_path / "again.jsonl"

    def check(lines: list[bytes]) -> None:
        file.write_bytes(b"\n".join(lines))
        try:
            read = Workload.read(file)
        except WorkloadError as error:
            is_a_sentence(error)
        else:
            read.write(again)
            assert Workload.read(again).requests == read.requests

    try_examples(count, st.lists(LINES, min_size=1, max_size=4), check)


MODEL_FILES = sorted(path.name for path in shipped_model().iterdir() if path.is_file())
KEYS = ("config.json", "tokenizer.json", "tokenizer_config.json", "checksums.json")
KINDS = ("gone", "empty", "bytes", "directory", "loop", "dangling", "pipe", "json", "key", "cut")


@examples(120, 1000)
def test_model_directories_are_loaded_or_refused(count: int, tmp_path: Path) -> None:
    """Damage a copy of the shipped model; what loads must have a tokenizer that works."""
    home = tmp_path / "model"

    def check(damage: dict[str, Any]) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for name in MODEL_FILES:
            if name != "checksums.json" or damage["checksums"]:
                (home / name).symlink_to(shipped_model() / name)
        spoil(home / damage["file"], damage)
        try:
            model = load_model(home)
            tokenizer = ModelTokenizer(model)
            tokenizer.token_id(model.eos_token)
            tokenizer.decode(tokenizer.encode("1 2 3 "))
        except ModelError as error:
            is_a_sentence(error)

    strategy = st.fixed_dictionaries({
        "file": st.sampled_from([*MODEL_FILES, *KEYS]), "kind": st.sampled_from(KINDS),
        "checksums": st.booleans(), "bytes": st.binary(max_size=20), "json": JSON,
        "key": st.integers(0, 50), "cut": st.floats(0, 1),
    })  # fmt: skip
    try_examples(count, strategy, check)


def spoil(file: Path, damage: dict[str, Any]) -> None:
    whole = (shipped_model() / file.name).read_bytes()
    file.unlink(missing_ok=True)
    kind = damage["kind"]
    if kind == "directory":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "dangling":
        file.symlink_to(file.with_name("nowhere"))
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "key" and file.name in KEYS:
        value = json.loads(whole)
        tables = [value, *(inner for inner in value.values() if isinstance(inner, dict))]
        table = tables[damage["key"] % len(tables)]
        if table:
            table[sorted(table)[damage["key"] % len(table)]] = damage["json"]
        file.write_text(json.dumps(value))
    elif kind != "gone":
        contents = {"bytes": damage["bytes"], "json": json.dumps(damage["json"]).encode(),
                    "cut": whole[: int(len(whole) * damage["cut"])]}  # fmt: skip
        file.write_bytes(contents.get(kind, b""))


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its name, those of groups too."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while todo:
        name, command = todo.pop()
        if inner := getattr(command, "commands", None):
            todo += [((*name, key), inner[key]) for key in sorted(inner, reverse=True)]
        else:
            yield name, command


COMMANDS = dict(commands())
NOWHERE = "/dev/null/nowhere"
"""No file and no directory can be there, whoever asks for one."""
HARMLESS = {
    ("sweep",): ("--dry-run",),
    ("report",): ("--out", NOWHERE),
    ("validate",): ("--out", NOWHERE),
    ("export",): ("--out", NOWHERE),
    ("plot",): ("--out", NOWHERE + ".png"),
    ("model", "build"): ("--model", NOWHERE),
    ("model", "verify"): ("--model", NOWHERE),
    ("model", "train"): ("--steps", "0"),
    ("notebooks", "copy"): (NOWHERE,),
    ("releases", "probe"): ("--like", "0"),
}
"""Arguments, given last, by which a command starts nothing, whatever else it is given."""
ARGUMENTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.binary(max_size=4).map(lambda data: os.fsdecode(data.replace(b"\0", b""))),
    st.integers(-2, 40).map(str),
    st.floats().map(str),
    st.sampled_from(["", "9" * 5000, "a" * 300, REPORTED, NEWEST, "none,trie", "all", "a=b",
                     f"{REPORTED},{NEWEST}", "trie", "lock-cache", "a:b=c", "1,2,4", "all-but:x",
                     "[" * 1000, 'a={"b":', "mixed+prefix_reuse", "--", "\x1b[2J"]),
)  # fmt: skip


NUMERALS = st.one_of(st.integers(-1, 9).map(str), st.floats(0, 9).map(str))


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """Draw a command line: a command with some of its options and arguments, and any values."""
    name = draw(st.sampled_from([name for name in COMMANDS if name != ("lab",)]))
    line: list[str] = []
    for parameter in COMMANDS[name].params:
        if parameter.name == "help" or not draw(st.integers(0, 3)):
            continue
        if parameter.param_type_name == "option":
            line.append(draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts])))
        if not getattr(parameter, "is_flag", False):
            usual = st.just(str(parameter.default))
            line.append(draw(ARGUMENTS | NUMERALS | usual | usual))
    if name in (("releases", "install"), ("releases", "remove")):
        line = [word for word in line if word not in KNOWN]
    return [*name, *line[:12], *HARMLESS.get(name, ())]


def run_here(line: list[str]) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit status, stdout and stderr."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["cachelab", *line]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = argv
    raise AssertionError("a command ends with an exit status")


@examples(150, 1000)
def test_command_lines_are_run_or_refused(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def check(line: list[str]) -> None:
        status, out, err = run_here(line)
        assert status in (0, 1, 2)
        assert all(shown.isprintable() for shown in (out + err).replace("\t", " ").split("\n"))
        if status:
            assert out == ""
            assert len(err.splitlines()) == 1, err
        assert list(tmp_path.iterdir()) == []

    try_examples(count, lines(), check)


REQUESTS = st.fixed_dictionaries(
    {"prompt": st.one_of(
        ANYTHING, st.text(), st.just("7 8 9 "),
        st.lists(st.integers(-2, 60) | st.booleans() | st.floats(), max_size=5),
        st.integers(200, 300).map(lambda count: "1" * count),
    )},
    optional={"max_new_tokens": st.integers(1, 3) | ANYTHING,
              "timeout_s": st.just(60.0) | ANYTHING, "request_id": ANYTHING},
)  # fmt: skip


@examples(80, 400)
def test_an_engine_goes_on_after_whatever_it_was_asked(
    count: int, release: str, child: Callable[..., Any]
) -> None:
    asked: list[dict[str, Any]] = []
    try_examples(count, REQUESTS, lambda request: asked.append(request))
    data = base64.b64encode(pickle.dumps(asked)).decode()
    done = child(
        release,
        f"""
        import base64, pickle
        from analysis.core.errors import EngineError
        asked = pickle.loads(base64.b64decode("{data}"))
        refused, answered, healthy = [], 0, []
        with Engine(EngineConfig()) as engine:
            for number, request in enumerate(asked):
                try:
                    future = engine.submit(**{{"max_new_tokens": 2, **request}})
                except EngineError as error:
                    refused.append(str(error))
                else:
                    # As long as a request may ask for: the engine's watch ends it.
                    outcome = future.result(timeout=120).outcome
                    assert outcome in ("ok", "empty", "error", "timeout"), (outcome, request)
                    answered += 1
                if number % 20 == 19:
                    healthy.append(engine.generate("1 2 3 4 5 ").text)
            say([refused, answered, healthy, str(engine.died)])
        """,
    )
    assert done.returncode == 0, done.stderr
    refused, answered, healthy, died = done.reply
    assert died == "None"
    assert len(refused) + answered == count
    assert min(len(refused), answered) > count // 10
    assert len(healthy) == count // 20
    assert all(text.startswith("6 7 8") for text in healthy)
    for reply in refused:
        is_a_sentence(EngineError(reply))
