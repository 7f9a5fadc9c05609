"""Which mechanisms of a model are compiled, and what is said of those that are not or do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurofleet.engine import host_cache
from neurofleet.engine.compiling import complaint
from neurofleet.errors import ModelError
from neurofleet.mechanisms import hint, to_compile
from neurofleet.model import EvaluatorSpec, pack
from unit.support import MODELS, write_model

pytestmark = pytest.mark.timeout(90)

#: As published models have it: C that is no C++, which NEURON 9 needs.
STOCHASTIC = """
NEURON {
    SUFFIX nfstoch
    RANGE n
    POINTER rng
}
ASSIGNED { n rng }
VERBATIM
extern double nrn_random_pick(void* r);
extern void* nrn_random_arg(int argpos);
ENDVERBATIM
INITIAL { n = 0 }
PROCEDURE set_rng() {
VERBATIM
    void** pv = (void**)(&_p_rng);
    if (ifarg(1)) { *pv = nrn_random_arg(1); }
ENDVERBATIM
}
"""


def mod(file: Path, name: str = "", kind: str = "SUFFIX") -> None:
    """Write a mechanism."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f": SUFFIX not_this\nCOMMENT\nSUFFIX nor_this\nENDCOMMENT\n"
        f"NEURON {{\n    {kind} {name or file.stem} RANGE x\n}}\nASSIGNED {{ x }}\n"
    )


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [
        (["mods"], ["mods"]),
        (["modFiles"], ["modFiles"]),
        (["mod_files", "examples/old"], ["mod_files"]),
        (["Mechanisms", "other"], ["Mechanisms"]),
        (["cells/l5/channels"], ["cells/l5/channels"]),
        (["mechanisms", "mods"], ["mechanisms"]),
        (["mod", "modfiles"], ["mod"]),
        (["channels", "synapses"], []),
        (["mods", "mod_files"], []),
    ],
)
def test_mechanisms_are_found_where_people_have_them(
    tmp_path: Path, folders: list[str], chosen: list[str]
) -> None:
    for number, folder in enumerate(folders):
        mod(tmp_path / folder / f"m{number}.mod")
    assert to_compile(tmp_path, None) == chosen


@pytest.mark.parametrize(
    ("first", "second", "kind", "same"),
    [
        ("ih/ih.mod", "mechanisms/ih.mod", "SUFFIX", "the same file name"),
        ("ih/ih_old.mod", "mechanisms/ih.mod", "SUFFIX", "the mechanism Ih"),
        ("mechanisms/a.mod", "mechanisms/b.mod", "POINT_PROCESS", "the mechanism Ih"),
    ],
)
def test_mechanism_in_two_files_is_named_with_both(
    tmp_path: Path, first: str, second: str, kind: str, same: str
) -> None:
    mod(tmp_path / first, "Ih", kind)
    mod(tmp_path / second, "Ih", kind)
    folders = tuple(dict.fromkeys(name.split("/")[0] for name in (first, second)))
    with pytest.raises(ModelError, match=f"'{first}' and '{second}' both have {same}.*--exclude"):
        to_compile(tmp_path, folders)


def test_mechanisms_that_have_no_name_are_not_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        mod(tmp_path / "mod" / f"{name}.mod", "nothing")
    assert to_compile(tmp_path, ("mod", "mod")) == ["mod"]


def test_hint_names_the_file_that_defines_what_is_missing(tmp_path: Path) -> None:
    mod(tmp_path / "mechanisms" / "na.mod")
    mod(tmp_path / "channels" / "ih.mod", "Ih")
    mod(tmp_path / "synapses" / "ampa.mod", "Ampa", "POINT_PROCESS")
    for said, file in (
        ("argument not a density mechanism name.: Ih", "channels/ih.mod"),
        ("LookupError: 'Ampa' is not a defined hoc variable name.", "synapses/ampa.mod"),
    ):
        told = hint(said, tmp_path, ["mechanisms"])
        assert told == (
            f"; '{file}' defines it and was not compiled: name the directory with --mechanisms"
        )


def test_hint_names_the_directories_when_no_file_defines_what_is_missing(tmp_path: Path) -> None:
    mod(tmp_path / "channels" / "ih.mod")
    said = "ValueError: argument not a density mechanism name.: unknown"
    assert "'channels'" in hint(said, tmp_path, [])
    assert "--mechanisms" in hint(said, tmp_path, [])
    assert hint(said, tmp_path, ["./channels/"]) == ""
    assert hint("ValueError: something else", tmp_path, []) == ""


def test_complaint_has_the_compilers_errors_before_its_warnings() -> None:
    warnings = "\n".join(
        f"a.cpp:{n}:24: warning: 'int vector_capacity(void*)' is deprecated: an error some day"
        for n in range(20)
    )
    output = (
        f"Translating a.mod into a.cpp\n{warnings}\nb.cpp: In function 'double f()':\n"
        "b.cpp:12:3: error: 'nrn_pick' was not declared in this scope\nmake: *** [b.o] Error 1\n"
        "Traceback (most recent call last):\nsubprocess.CalledProcessError: error\n"
    )
    told = complaint(output)
    assert told.startswith("b.cpp:12:3: error: 'nrn_pick' was not declared")
    assert "CalledProcessError" not in told


def test_mechanism_that_neuron_9_refuses_says_so_and_can_be_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path / "model")
    (model / "mods").mkdir()
    (model / "mods" / "nfstoch.mod").write_text(STOCHASTIC)
    spec = EvaluatorSpec("evaluator:create")
    bundle = pack(model, spec)
    host_cache.receive(bundle.digest, bundle.archive)
    with pytest.raises(ModelError) as caught:
        host_cache.ensure_compiled(bundle.digest)
    told = str(caught.value)
    assert "in mods do not compile: " in told
    first = told.partition("do not compile: ")[2]
    assert " error: " in first.partition(";")[0]
    assert "a matter of NEURON 9" in told
    assert "porting_mechanisms_to_cpp" in told
    assert "leave nfstoch.mod out with --exclude" in told
    without = pack(model, spec, exclude=["nfstoch.mod"])
    host_cache.receive(without.digest, without.archive)
    directory, _ = host_cache.ensure_compiled(without.digest)
    assert not list(directory.rglob("*.mod"))


def test_cache_with_letters_spaces_and_quotes_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / 'Müller\'s "big" disk'))
    bundle = pack(MODELS / "quick", EvaluatorSpec("quick_evaluator:create"))
    host_cache.receive(bundle.digest, bundle.archive)
    directory, _ = host_cache.ensure_compiled(bundle.digest)
    assert list(directory.glob("*/libnrnmech.so"))
