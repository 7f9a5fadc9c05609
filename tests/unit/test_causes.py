"""Of an exception a person is told the innermost cause, and where in their code it is."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import re
import traceback
from pathlib import Path

import pebble
import pytest
from ipyparallel.error import CompositeError, RemoteError

from neurofleet.causes import chain, line, traceback_text

FORK = multiprocessing.get_context("fork")
HERE = Path(__file__).name


def number_of(words: str) -> int:
    """Return the line of this file that holds the words, as a comment at its end."""
    rows = Path(__file__).read_text().splitlines()
    return next(n for n, row in enumerate(rows, 1) if row.endswith(f"# {words}"))


def read_morphology() -> None:
    raise OSError("Morphology not found at 'morph/cell.asc'")  # the morphology


def simulate(_item: int = 0) -> None:
    try:
        read_morphology()
    except OSError as error:
        raise RuntimeError("Failed to run the protocol") from error


def raised_by(function: object) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any
        function()  # type: ignore[operator]
    return caught.value


MORPHOLOGY = (
    "OSError: Morphology not found at 'morph/cell.asc'"
    f" ({HERE}, line {number_of('the morphology')})"
)


def test_line_of_a_chain_is_its_innermost_cause_with_file_and_line() -> None:
    error = raised_by(simulate)
    assert line(error) == MORPHOLOGY
    assert [type(link) for link in chain(error)] == [RuntimeError, OSError]


def in_a_pool() -> None:
    with FORK.Pool(1) as pool:
        pool.map(simulate, [1])


def in_an_executor() -> None:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=FORK) as executor:
        executor.submit(simulate).result()


def in_pebble() -> None:
    with pebble.ProcessPool(1, context=FORK) as pool:
        pool.schedule(simulate).result()


def in_an_executor_in_pebble() -> None:
    with pebble.ProcessPool(1, context=FORK) as pool:
        pool.schedule(in_an_executor).result()


@pytest.mark.parametrize(
    "elsewhere", [in_a_pool, in_an_executor, in_pebble, in_an_executor_in_pebble]
)
def test_line_of_what_another_process_raised_is_the_innermost_cause(elsewhere: object) -> None:
    error = raised_by(elsewhere)
    assert line(error) == MORPHOLOGY
    assert "Morphology not found" in traceback_text(error)
    assert "Failed to run the protocol" in traceback_text(error)


def test_line_of_an_engines_error_is_the_innermost_cause() -> None:
    text = "".join(traceback.format_exception(raised_by(simulate)))
    error = RemoteError("RuntimeError", "Failed to run the protocol", text)
    assert line(error) == MORPHOLOGY
    assert "Morphology not found" in traceback_text(error)
    assert line(CompositeError("one or more", [("RuntimeError", "x", text, None)])) == MORPHOLOGY
    assert line(RemoteError("KeyError", "'x'", None)) == "KeyError: 'x'"


def test_line_of_an_engines_error_in_ipythons_form_is_its_cause() -> None:
    text = (
        "\x1b[31m----------\x1b[39m\n"
        "\x1b[31mKeyError\x1b[39m          Traceback (most recent call last)\n"
        "File \x1b[32m/home/ada/cells/fit.py:7\x1b[39m, in \x1b[36mscore\x1b[39m(x)\n"
        "      6 def score(x):\n"
        "----> 7     return table[x]\n\n"
        "\x1b[31mKeyError\x1b[39m: 'soma'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError          Traceback (most recent call last)\n"
        "File <frozen runpy>:198, in run()\n\n"
        "RuntimeError: no table\n"
    )
    assert (
        line(RemoteError("RuntimeError", "no table", text)) == "KeyError: 'soma' (fit.py, line 7)"
    )


def test_line_follows_what_was_being_handled_unless_it_was_suppressed() -> None:
    def shadowed() -> None:
        try:
            {}["gnabar"]
        except KeyError:
            raise ValueError("no such parameter") from None  # suppressed

    def handled() -> None:
        try:
            {}["gnabar"]  # handled
        except KeyError:
            raise ValueError("no such parameter")  # noqa: B904

    assert line(raised_by(shadowed)) == (
        f"ValueError: no such parameter ({HERE}, line {number_of('suppressed')})"
    )
    assert line(raised_by(handled)) == f"KeyError: 'gnabar' ({HERE}, line {number_of('handled')})"


def test_line_takes_the_message_that_says_the_same_and_more() -> None:
    def insert() -> None:
        try:
            raise ValueError("argument not a density mechanism name.")  # said first
        except ValueError as error:
            raise ValueError(f"{error}: StochKv") from error

    def wrapped() -> None:
        try:
            insert()
        except ValueError as error:
            raise RuntimeError("Failed to run the protocol") from error

    assert line(raised_by(wrapped)) == (
        "ValueError: argument not a density mechanism name.: StochKv"
        f" ({HERE}, line {number_of('said first')})"
    )


def test_line_names_the_persons_line_when_a_library_raised() -> None:
    error = raised_by(lambda: re.compile("("))  # a library
    assert line(error).startswith("error: missing )")
    assert line(error).endswith(f"({HERE}, line {number_of('a library')})")


def test_line_of_a_group_is_the_first_ones_cause_and_counts_the_others() -> None:
    error = ExceptionGroup("several", [raised_by(simulate), KeyError("x"), KeyError("y")])
    assert line(error) == f"{MORPHOLOGY}, and 2 others"

    def raise_group() -> None:
        raise error

    text = "".join(traceback.format_exception(raised_by(raise_group)))
    assert line(RemoteError("ExceptionGroup", "several", text)).startswith(MORPHOLOGY)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_line_of_an_exception_whose_text_cannot_be_made_says_so() -> None:
    assert line(Unspeakable()) == "Unspeakable (its text cannot be made)"
    assert "Unspeakable" in traceback_text(Unspeakable())


class NoString(Exception):
    def __str__(self) -> str:
        return 4  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (KeyError(("a", 1)), "KeyError: ('a', 1)"),
        (AssertionError(), "AssertionError"),
        (ValueError("two\n   lines\t of it"), "ValueError: two lines of it"),
        (ValueError("x" * 5000), f"ValueError: {'x' * 600}..."),
        (SystemExit(3), "SystemExit: 3"),
        (NoString(), "NoString (its text cannot be made)"),
        (
            SyntaxError("invalid syntax", ("/home/ada/cell.py", 3, 1, "def", 3, 4)),
            "SyntaxError: invalid syntax (cell.py, line 3)",
        ),
    ],
)
def test_line_of_an_exception_reads_well(error: BaseException, told: str) -> None:
    assert line(error) == told


def test_line_of_exceptions_that_are_each_others_cause_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert line(first) == "ValueError: second"
    assert chain(first) == [first, second]


def test_line_names_files_relative_to_a_directory_when_asked(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / "cell.py"
    error = raised_by(lambda: exec(compile("\nraise ValueError(1)", file, "exec")))
    assert line(error) == "ValueError: 1 (cell.py, line 2)"
    assert line(error, tmp_path) == "ValueError: 1 (code/cell.py, line 2)"


def test_line_of_a_remote_message_of_several_lines_has_all_of_them() -> None:
    def elsewhere() -> None:
        with pebble.ProcessPool(1, context=FORK) as pool:
            pool.schedule(raise_two_lines).result()

    assert line(raised_by(elsewhere)).startswith("ValueError: first second third (")


def raise_two_lines() -> None:
    raise ValueError("first\n  second\n\nthird")
