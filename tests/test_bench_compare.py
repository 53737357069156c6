"""`bench/compare.py` finds what became slower, and nothing else."""

import json

import compare
import pytest


def one(name, median, share=None, iqr=0.01):
    extra = {} if share is None else {"share of limit": share}
    return {"fullname": name, "stats": {"median": median, "iqr": iqr * median}, "extra_info": extra}


@pytest.fixture
def held(tmp_path):
    """Compares two lists of benchmarks; returns the exit code."""

    def compared(before, after, cpus=(2, 2), tolerance="0.05"):
        paths = []
        for i, benchmarks in enumerate((before, after)):
            info = {"cpu": {"brand_raw": "a CPU", "count": cpus[i]}, "system": "Linux"}
            paths.append(tmp_path / f"{i}.json")
            paths[-1].write_text(json.dumps({"benchmarks": benchmarks, "machine_info": info}))
        return compare.main([*map(str, paths), "--tolerance", tolerance])

    return compared


def test_a_slower_one_is_told(held, capsys):
    assert held([one("a", 1.0), one("b", 1.0)], [one("a", 1.2), one("b", 1.0)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("SLOWER   0.833 x")
    assert printed[0].endswith("by time: a")
    assert printed[1].startswith("same     1.000 x")


def test_a_slower_minute_of_the_machine_is_none(held, capsys):
    assert held([one("a", 1.0, share=0.9)], [one("a", 2.0, share=0.9)]) == 0
    assert "by share of limit: a" in capsys.readouterr().out
    assert held([one("a", 1.0, share=0.9)], [one("a", 1.0, share=0.8)]) == 1


def test_what_varies_is_given_that_much(held):
    assert held([one("a", 1.0, iqr=0.3)], [one("a", 1.2, iqr=0.3)]) == 0
    assert held([one("a", 1.0)], [one("a", 1.04)]) == 0
    assert held([one("a", 1.0)], [one("a", 1.04)], tolerance="0.01") == 1


def test_faster_and_missing_are_no_regressions(held, capsys):
    assert held([one("a", 1.0), one("gone", 1.0)], [one("a", 0.5), one("new", 1.0)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("faster   2.000 x")
    assert "only in one run: gone" in printed
    assert "only in one run: new" in printed


def test_runs_that_cannot_be_compared(held, capsys, tmp_path):
    assert held([one("a", 1.0)], [one("a", 1.0)], cpus=(2, 4)) == 2
    assert "not of the same machine" in capsys.readouterr().err
    assert held([one("a", 1.0)], [one("b", 1.0)]) == 2
    (tmp_path / "no.json").write_text("[]")
    for path in ("no.json", "none.json"):
        with pytest.raises(SystemExit, match="compare"):
            compare.main([str(tmp_path / path), str(tmp_path / path)])
