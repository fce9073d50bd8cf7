"""`understudy theory` from the outside, on a made-up experiment; the real ones are tested in tests/theory."""

import json

import pytest
from command import understudy

from lab_sample import ROWS, sample
from understudy.theory.outcome import Row
from understudy.theory.table import EXPERIMENTS, Experiment


class Tiny(Experiment):
    """Takes no time; its second row depends on the seed."""

    def run(self, seed=0, progress=None, run_folder=""):
        progress(0.5)
        if run_folder == "missing":
            raise ValueError("expected a comparison, found missing.")
        seeded = Row(claim="seeded", source="s", relation="=", bound=seed, measured=seed)
        broken = Row(claim="broken", source="s", relation="=", bound=1, measured=2)
        return sample((*ROWS, seeded, *((broken,) if seed == 7 else ())))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    for name, compares in (("tiny", False), ("tiny-too", True)):
        entry = Tiny(name=name, question=f"Is {name} so?", source="arXiv:1", compares_a_run=compares)
        monkeypatch.setitem(EXPERIMENTS, name, entry)


def test_without_a_name_it_lists(tmp_path):
    found = understudy("theory")
    assert found.code == 0
    assert "Is tiny so?" in found.out
    listed = json.loads(understudy("theory", "--json").out)
    assert [entry["name"] for entry in listed] == ["tiny", "tiny-too"]
    assert not (tmp_path / "runs").exists()


def test_one_experiment_prints_a_table_and_writes_its_folder(tmp_path):
    found = understudy("theory", "tiny")
    assert found.code == 0
    assert found.out.startswith("tiny: Is tiny so?\n")
    for text in (
        "claim",
        "holds?",
        "no, as shown",
        "0.2 (0.15 to 0.25)",
        "It <holds>.",
        "[1] the sign is wrong",
    ):
        assert text in found.out
    folder = tmp_path / "runs" / "theory" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"theory.json", "figure.png", "report.html"}
    record = json.loads((folder / "theory.json").read_text())
    assert record["is_as_expected"] is True
    assert record["versions"]["numpy"]
    assert "figure: runs/theory/tiny/figure.png" in found.out
    assert "report: runs/theory/tiny/report.html" in found.out


def test_json_is_the_rows_and_nothing_else():
    record = json.loads(understudy("theory", "tiny", "--json", "--seed", "3").out)
    assert record["rows"][4]["measured"] == 3
    assert record["rows"][0]["holds"] == "yes"
    assert "panels" not in record
    both = json.loads(understudy("theory", "--all", "--json").out)
    assert [entry["name"] for entry in both] == ["tiny", "tiny-too"]


def test_all_writes_one_page_and_run_reaches_only_what_compares(tmp_path):
    assert understudy("theory", "--all", "--out", "lab", "--run", "somewhere").code == 0
    html = (tmp_path / "lab" / "report.html").read_text()
    assert html.index("<h2>tiny:") < html.index("<h2>tiny-too:")
    assert understudy("report", "lab").code == 0
    assert "lab/tiny/figure.png" in understudy("report", "lab").out


def test_a_claim_that_fails_is_exit_code_1_and_is_written_all_the_same(tmp_path):
    found = understudy("theory", "tiny", "--seed", "7")
    assert found.code == 1
    assert found.err.splitlines()[-1] == "not as expected: broken (s)"
    assert json.loads((tmp_path / "runs/theory/tiny/theory.json").read_text())["is_as_expected"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tini"], "'tini' is not an experiment of the theory lab. Did you mean tiny?"),
        (["tiny", "--all"], "give either NAME or --all, not both"),
        (["--seed", "5"], "an option without an experiment: give NAME or --all"),
        (["--out", "x"], "an option without an experiment: give NAME or --all"),
        (["tiny", "--run", "x"], "tiny compares with no run. --run is for: tiny-too."),
        (["tiny-too", "--run", "missing"], "expected a comparison, found missing."),
        (["tiny", "--seed", "-1"], "Invalid value for '--seed'"),
        (["tiny", "--out", "taken/run"], "taken/run holds a training run or a comparison (recipe.json)"),
        (["tiny", "--out", "other"], "other holds the experiment lock, not tiny. Use another --out."),
        (["--all", "--out", "other"], "other holds one experiment; --all needs a folder for all of them."),
        (["tiny", "--out", "file"], "cannot create the folder file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, message):
    (tmp_path / "taken" / "run").mkdir(parents=True)
    (tmp_path / "taken" / "run" / "recipe.json").write_text("{}")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "other").mkdir()
    other = json.dumps({"order": 4, "name": "lock", "rows": [], "panels": []})
    (tmp_path / "other" / "theory.json").write_text(other)
    found = understudy("theory", *arguments)
    assert found.code == 2
    assert message in found.err
    assert found.out == ""
    assert (tmp_path / "file").read_text() == "kept"
    assert [path.name for path in (tmp_path / "taken" / "run").iterdir()] == ["recipe.json"]
    assert (tmp_path / "other" / "theory.json").read_text() == other


def test_an_earlier_record_is_replaced_and_nothing_else(tmp_path):
    understudy("theory", "tiny", "--out", "lab")
    (tmp_path / "lab" / "mine.txt").write_text("kept")
    understudy("theory", "tiny", "--out", "lab", "--seed", "2")
    assert json.loads((tmp_path / "lab" / "theory.json").read_text())["seed"] == 2
    assert (tmp_path / "lab" / "mine.txt").read_text() == "kept"


def test_a_fault_in_an_experiment_keeps_its_traceback(monkeypatch):
    def broken(self, seed=0, progress=None, run_folder=""):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(Tiny, "run", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        understudy("theory", "tiny")
