"""Values of options, lines of items, tables: whatever a person or a script may give."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit.hostile.inputs import (
    ARGUMENTS,
    DAMAGE,
    EVIL_TEXTS,
    Damage,
    assert_documented,
    command,
    hostile,
    scratch,
)
from unit.support import PURE_PYTHON, snapshot

pytestmark = pytest.mark.timeout(240)

TEXT = ("--evaluator", "--search", "--kwargs", "--mechanisms", "--exclude", "--name", "--run-dir",
        "--checkpoint", "--profile", "--partition", "--time", "--account",
        "--slurm-option")  # fmt: skip
NUMBER = ("--offspring-size", "--max-ngen", "--seed", "--eta", "--mutpb", "--cxpb", "--engines",
          "--engine-timeout", "--queue-timeout", "--unit-timeout")  # fmt: skip
CHOICE = ("--selector", "--backend")
OPTIONS = st.lists(
    st.tuples(st.sampled_from((*TEXT, *NUMBER, *CHOICE)), ARGUMENTS), min_size=1, max_size=3
)


def words(options: list[tuple[str, str]]) -> list[str]:
    """Return options as they are typed, in both ways that there are."""
    typed = []
    for index, (name, value) in enumerate(options):
        typed += [f"{name}={value}"] if index % 2 or value[:1] == "-" else [name, value]
    return typed


@given(options=OPTIONS, more=st.sampled_from([[], [], [], ["--nonsense"], ["surplus"], ["--"]]))
@example(options=[("--kwargs", '{"a":' * 5000)], more=[])
@example(options=[("--seed", "9" * 5000)], more=[])
@example(options=[("--name", "\udcff\n")], more=[])
@hostile("options of optimise", 150)
def test_options_of_optimise_are_taken_or_refused_and_nothing_is_written(
    options: list[tuple[str, str]], more: list[str]
) -> None:
    with scratch() as folder:
        model = ("optimise", PURE_PYTHON, "--evaluator", "evaluator:create", "--dry-run")
        done = assert_documented(command(*model, *words(options), *more, cwd=folder))
        assert done.code in (0, 2), done
        assert snapshot(folder) == {}
        if done.code == 0:
            assert json.loads(done.out)["schema_version"] == 1


@given(model=ARGUMENTS)
@example(model="x" * 5000)
@hostile("model directory's name", 40)
def test_name_of_a_model_directory_is_refused(model: str) -> None:
    with scratch() as above:
        folder = above / "a" / "b"  # the names may lead upwards
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
        os.mkfifo(folder / "pipe")
        before = snapshot(folder)
        for name in (model, "file", "pipe"):
            given_words = ("--evaluator", "evaluator:create", "--dry-run", "--", name)
            done = assert_documented(command("optimise", *given_words, cwd=folder))
            assert done.code == 2 or name in ("", ".", "..") or "/" in name, done
        assert snapshot(folder) == before


# Not --diversity: the model would be fetched.
L5PC = ("--sim", "--responses", "--checkpoint", "--run-dir", "--profile", "--seed",
        "--offspring-size", "--max-ngen", "--engines", "--engine-timeout", "--backend",
        "--time")  # fmt: skip


@given(
    options=st.lists(st.tuples(st.sampled_from(L5PC), ARGUMENTS), min_size=1, max_size=3),
    verbose=st.sampled_from([[], ["-v"], ["-vvv"], ["--sim", "x"]]),
)
@hostile("options of opt_l5pc", 60)
def test_options_of_opt_l5pc_are_taken_or_refused(
    options: list[tuple[str, str]], verbose: list[str]
) -> None:
    with scratch() as folder:
        done = command(*words(options), *verbose, cwd=folder, program="opt_l5pc")
        assert_documented(done)
        assert done.code == 2 or "nothing to do" in done.err, done
        assert snapshot(folder) == {}


@given(
    options=st.lists(
        st.tuples(
            st.sampled_from(["--engines", "--partition", "--time", "--account", "--slurm-option",
                             "--module", "--stop-before"]),
            ARGUMENTS,
        ),
        max_size=3,
    ),
    program=ARGUMENTS,
)  # fmt: skip
@example(options=[("--partition", "a\ntouch gone")], program="neurofleet")
@example(options=[], program="a\ntouch gone")
@hostile("batch script", 80)
def test_batch_script_has_no_line_that_an_option_made(
    options: list[tuple[str, str]], program: str
) -> None:
    with scratch() as folder:
        plain = ("slurm", "script", "--engines", "2")
        expected = command(*plain, "--", "program", cwd=folder).out
        typed = [*plain, *words(options), "--", program]
        done = assert_documented(command(*typed, cwd=folder))
        assert done.code in (0, 2), done
        directives = [line for line in done.out.splitlines() if line.startswith("#SBATCH")]
        assert len(directives) <= len(options) + expected.count("#SBATCH")
        if done.code == 0 and not any(name == "--module" for name, _ in options):
            body = [line for line in done.out.split("\n") if not line.startswith("#SBATCH")]
            usual = [line for line in expected.split("\n") if not line.startswith("#SBATCH")]
            assert len(body) == len(usual) + program.count("\n"), done  # shlex quotes the command


@given(
    verb=st.sampled_from(["report", "repair", "completion", "cost", "extend", "run", "map", "x"]),
    arguments=st.lists(ARGUMENTS, max_size=3),
)
@example(verb="report", arguments=["\udcff"])
@hostile("arguments of other commands", 100)
def test_arguments_of_other_commands_are_refused(
    verb: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch() as folder:
        monkeypatch.setenv("NEUROFLEET_MANIFEST", str(folder / "none.json"))
        before = snapshot(folder)
        done = assert_documented(command(verb, *arguments, cwd=folder))
        assert done.code in (0, 2), done
        assert snapshot(folder) == before


@given(head=ARGUMENTS, arguments=st.lists(ARGUMENTS, max_size=2))
@example(head="-oProxyCommand=touch gone", arguments=[])
@hostile("heads", 40)
def test_head_that_is_none_is_refused_or_not_reached(
    head: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_SSH", "sh -c 'exit 255' ssh")
    with scratch() as folder:
        done = assert_documented(command(f"--head={head}", *arguments, cwd=folder))
        host = head.partition(":")[0]
        assert done.code == (2 if not host.strip() or host[0] == "-" else 3), done
        assert snapshot(folder) == {}


@pytest.mark.parametrize(("ssh", "code"), [("'", 2), ("/nowhere/ssh", 2), ("sh -c 'exit 127'", 2)])
def test_ssh_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: str, code: int
) -> None:
    monkeypatch.setenv("NEUROFLEET_SSH", ssh)
    assert assert_documented(command("--head", "h", "report", "x", cwd=tmp_path)).code == code


# -- items and tables ----------------------------------------------------------------------

SERIAL = ("--backend", "serial", "--run-dir", "run")
LINES = b'4\n"text"\n{"x": 1}\n\n[1, 2]\nnull\n'


@given(damage=DAMAGE)
@example(damage=lambda _content: b"[" * 100_000)
@example(damage=lambda _content: b"9" * 5000)
@hostile("items", 60)
def test_items_damaged_are_computed_or_refused(damage: Damage) -> None:
    with scratch() as folder:
        items = damage(LINES)
        (folder / "items.jsonl").write_bytes(items)
        typed = ("map", "json:dumps", "items.jsonl", *SERIAL, "--json")
        done = assert_documented(command(*typed, cwd=folder))
        assert done.code in (0, 2), done
        assert (folder / "items.jsonl").read_bytes() == items
        if done.code == 0:
            results = (folder / "run" / "results.jsonl").read_text().splitlines()
            assert len(results) == json.loads(done.out)["items"]


@given(
    function=st.one_of(
        st.sampled_from(
            [*EVIL_TEXTS, "math:", ":sqrt", "math:none", "math:pi", "nosuch:f", "exits:f"]
        ),
        st.text(max_size=8).map(lambda text: f"math:{text}"),
    ),
    place=st.sampled_from(["items.jsonl", "none", ".", "items.jsonl/below"]),
)
@example(function="exits:f", place="items.jsonl")
@hostile("functions", 60)
def test_functions_that_are_none_are_refused(function: str, place: str) -> None:
    with scratch() as folder:
        (folder / "items.jsonl").write_text('"x"\n')
        (folder / "exits.py").write_text("raise SystemExit(3)\n")
        done = assert_documented(
            command(
                "map", *SERIAL, "--", function.replace("os:system", "os:nothing"), place, cwd=folder
            )
        )
        assert done.code in (1, 2), done


TABLE = b"a,b,price\n1,2,3\n2,3,4\n3,4,5\n4,5,6\n"


@given(
    damage=st.just(lambda content: content + b"5,6,7\n") | DAMAGE,
    target=st.sampled_from(["price", None]).flatmap(lambda t: st.just(t) if t else ARGUMENTS),
)
@example(damage=lambda content: content, target="price")
@hostile("table", 80)
def test_table_damaged_is_predicted_from_or_refused(damage: Damage, target: str) -> None:
    with scratch() as folder:
        table = damage(TABLE)
        (folder / "houses.csv").write_bytes(table)
        typed = ("run", "loo-forest", "--csv", "houses.csv", f"--target={target}")
        few = ("--held-out", "1", "--trees", "1", *SERIAL)
        done = assert_documented(command(*typed, *few, cwd=folder))
        assert done.code in (0, 1, 2), done
        assert (folder / "houses.csv").read_bytes() == table


@pytest.mark.parametrize(
    "words",
    [("map", "math:sqrt", "x"), ("run", "loo-forest", "--target", "a", "--csv", "x"),
     ("report", "x"), ("repair", "x"), ("optimise", "x", "--evaluator", "a:b")],
    ids=" ".join,
)  # fmt: skip
def test_directory_in_the_place_of_an_input_is_refused(tmp_path: Path, words: tuple[str]) -> None:
    (tmp_path / "x").mkdir()
    assert assert_documented(command(*words, cwd=tmp_path)).code == 2
