"""``bitnet batch``: the formats, errors of lines, and that nothing is lost or done twice, whatever ends it."""

import csv
import fcntl
import json
import os
import signal
import time

import pytest

import bitnet
from bitnet.cli import main
from bitnet.cli.batch_files import Journal

STARTS = ["Once upon a time", "One day", "Tom had a ball", "The cat was", "It was a sunny day and"]


@pytest.fixture(scope="module")
def model():
    with bitnet.load(num_threads=1) as loaded:
        yield loaded


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batch(*arguments):
    return main(["batch", "--num-threads", "1", *map(str, arguments)])


def test_a_text_file_has_a_prompt_a_line(tmp_path, model, capsys):
    (tmp_path / "in.txt").write_text("\ufeff" + STARTS[0] + "\n\n" + STARTS[1] + "\r\n" + STARTS[2])
    assert batch("-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 6) == 0
    found = lines(tmp_path / "out.jsonl")
    done = [model.generate(start, max_new_tokens=6) for start in STARTS[:3]]
    assert found == [
        {"line": line, "prompt": start, "completion": one.text, "finish_reason": "length",
         "prompt_tokens": one.prompt_tokens, "completion_tokens": 6, "error": None}
        for line, start, one in zip((1, 3, 4), STARTS, done, strict=False)
    ]  # fmt: skip
    assert capsys.readouterr().err == f"3 prompts, 0 of them with errors: {tmp_path}/out.jsonl\n"
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.jsonl"]


def test_lines_of_json_have_settings_and_errors_of_their_own(tmp_path, model, capsys):
    rows = [
        {"id": "a", "prompt": STARTS[0]},
        {"prompt": [5, 6, 7], "config": {"max_new_tokens": 3}},
        {"messages": [{"role": "user", "content": STARTS[1]}], "note": {"x": 1}},
        {"prompt": STARTS[0], "config": {"max_tokens": 3}},
        {"prompt": STARTS[0], "config": 3},
        {"prompt": STARTS[0], "config": {"do_sample": True, "num_return_sequences": 2}},
        {"prompt": []},
        {"prompt": "a " * 600},
        {"id": "b"},
        [1],
    ]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"prompt": \n' + "[" * 100_000 + "\n"
    (tmp_path / "in.jsonl").write_bytes(text.encode() + b"\xff\n")
    given = ("-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 5, "--template", "plain")
    assert batch(*given) == 1
    found = lines(tmp_path / "out.jsonl")
    assert [row["line"] for row in found] == list(range(1, 14))
    assert found[0]["id"] == "a"
    assert found[0]["completion"] == model.generate(STARTS[0], max_new_tokens=5).text
    assert found[1]["completion"] == model.generate([5, 6, 7], max_new_tokens=3).text
    assert found[2]["completion"] == model.generate(STARTS[1], max_new_tokens=5).text
    assert found[2]["note"] == {"x": 1}
    assert [row["error"] for row in found[:3]] == [None] * 3
    for row, sentence in zip(found[3:], (
        "GenerationConfig has no field 'max_tokens'; use 'max_new_tokens'",
        "batch.config is 3; it must be an object of settings",
        "batch.num_return_sequences is 2; it must be 1: an answer a line",
        "the prompt has no tokens; give at least one", "beyond the 512 tokens of the context",
        "the line must be an object with either 'prompt' or 'messages'",
        "the line must be an object with either 'prompt' or 'messages'", "the line is not JSON", "the line is not JSON",
        "the line is not JSON",
    ), strict=True):  # fmt: skip
        assert sentence in row["error"]
        assert row["completion"] is None
    assert "13 prompts, 10 of them with errors" in capsys.readouterr().err


def test_tables(tmp_path, model):
    with open(tmp_path / "in.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", "prompt", "error"], ["ä, b", "One day,\nTom", "x"], ["c", STARTS[1], "y"]])
        file.write("d\n")
    assert batch("-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--max-new-tokens", 4) == 1
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["line", "name", "prompt", "completion", "finish_reason", "prompt_tokens",
                              "completion_tokens", "error"]  # fmt: skip
    assert [row["name"] for row in found] == ["ä, b", "c", "d"]
    assert found[0]["prompt"] == "One day,\nTom"
    assert found[0]["completion"] == model.generate("One day,\nTom", max_new_tokens=4).text
    assert found[0]["error"] == ""
    assert found[2]["error"] == "the row has more or fewer fields than the header"


def test_seeds_of_lines_do_not_depend_on_what_runs_beside(tmp_path, model):
    (tmp_path / "in.txt").write_text("\n".join([STARTS[0]] * 6))
    drawn = ("--do-sample", "--temperature", 1.5, "--seed", 7, "--max-new-tokens", 8)
    for parallel in (1, 4):
        assert batch("-i", tmp_path / "in.txt", "-o", tmp_path / f"{parallel}.jsonl", "--parallel", parallel,
                     *drawn) == 0  # fmt: skip
    assert lines(tmp_path / "1.jsonl") == lines(tmp_path / "4.jsonl")
    assert len({row["completion"] for row in lines(tmp_path / "1.jsonl")}) > 3
    one = model.generate(STARTS[0], do_sample=True, temperature=1.5, seed=9, max_new_tokens=8)
    assert lines(tmp_path / "1.jsonl")[2]["completion"] == one.text


def test_a_grammar_is_for_all_lines(tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(STARTS))
    given = ("-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "--regex", "(cat|dog)")
    assert batch(*given, "--quiet") == 0
    assert {row["completion"] for row in lines(tmp_path / "out.jsonl")} <= {"cat", "dog"}


# ---- nothing lost, nothing twice


def wait_for(path, count, process):
    """Until a journal has so many answers; a moment later it may have more."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be killed"


def test_a_killed_run_is_continued(tmp_path, start):
    prompts = [f"{start_} {i}" for i in range(12) for start_ in STARTS]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    given = ["batch", "-i", str(tmp_path / "in.txt"), "--max-new-tokens", "60", "--parallel", "4", "--num-threads", "1"]
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    kept = b""
    for count in (5, 20, 40):
        process = start(*given, "-o", str(output))
        wait_for(journal, count, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not output.exists()
        written = journal.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        assert whole.startswith(kept)  # what was there stays, byte for byte
        numbers = [json.loads(line)["line"] for line in whole.splitlines()[1:]]
        assert len(set(numbers)) == len(numbers) > count - 1  # and nothing comes twice
        kept = whole
    process = start(*given, "-o", str(output))
    assert process.wait(timeout=120) == 0
    assert not journal.exists()
    assert main([*given, "-o", str(tmp_path / "alone.jsonl"), "--quiet"]) == 0
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert [row["prompt"] for row in lines(output)] == prompts


def test_ctrl_c_keeps_what_is_done(tmp_path, start):
    (tmp_path / "in.txt").write_text("\n".join(f"{STARTS[0]} {i}" for i in range(400)))
    given = ["batch", "-i", str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.jsonl"), "--max-new-tokens", "200",
             "--parallel", "4"]  # fmt: skip
    process = start(*given)
    wait_for(tmp_path / "out.jsonl.partial", 2, process)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 400 prompts are answered, in" in complaints
    assert complaints.endswith("bitnet: stopped\n")
    done = lines(tmp_path / "out.jsonl.partial")[1:]
    assert 2 <= len(done) < 400
    assert {row["finish_reason"] for row in done} <= {"length", "eos"}


@pytest.mark.parametrize("cut", [1, 30])
def test_half_a_line_at_the_end_is_cut_off(tmp_path, cut):
    with Journal(str(tmp_path / "out"), {"a": 1}) as journal:
        for line in (3, 1):
            journal.add(line, {"completion": "ö" * line})
    path = tmp_path / "out.partial"
    path.write_bytes(path.read_bytes()[:-cut] if cut == 1 else path.read_bytes() + b'{"line": 2, "comple')
    with Journal(str(tmp_path / "out"), {"a": 1}) as journal:
        assert set(journal.done) == ({3} if cut == 1 else {3, 1})
        journal.add(7, {"completion": ""})
        assert [answer["line"] for answer in journal.answers(iter([7, 3]))] == [7, 3]
    assert [json.loads(line).get("line") for line in path.read_bytes().splitlines()][-1] == 7
    path.write_bytes(b'{"a": ')  # killed before the header was whole
    with Journal(str(tmp_path / "out"), {"a": 1}) as journal:
        assert journal.done == {}


def test_a_journal_is_of_one_job_and_one_process(tmp_path, capsys):
    (tmp_path / "in.txt").write_text(STARTS[0])
    given = ("-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 2)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text('{"bitnet_batch": 1, "input": "other"}\n')
    assert batch(*given) == 1
    assert "is of another input, model or settings; give --overwrite to begin anew" in capsys.readouterr().err
    assert partial.exists()
    with open(partial, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert batch(*given) == 1
        assert "another process is at work on it" in capsys.readouterr().err
    assert batch(*given, "--overwrite") == 0
    capsys.readouterr()
    assert batch(*given) == 1
    assert "out.jsonl' exists already" in capsys.readouterr().err
    assert batch(*given, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_what_cannot_be_used_is_refused_before_loading(tmp_path, capsys):
    (tmp_path / "in.txt").write_text(STARTS[0])
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.csv").write_bytes(b"prompt\n\xff\n")
    inside = ("-i", tmp_path / "in.txt")
    for given, code, sentence in (
        ((*inside, "-o", tmp_path / "out.txt"), 2, "it must be one that ends in .jsonl, .csv"),
        ((*inside, "-o", tmp_path / "out.jsonl", "--parallel", 0), 2, "batch.--parallel is 0"),
        ((*inside, "-o", tmp_path / "out.jsonl", "--top-p", 2), 2, "top_p is 2.0"),
        (("-i", tmp_path / "none.txt", "-o", tmp_path / "out.jsonl"), 1, "No such file"),
        (("-i", tmp_path / "in.csv", "-o", tmp_path / "out.jsonl"), 1, "columns is ['a', 'b']"),
        (("-i", tmp_path / "bad.csv", "-o", tmp_path / "out.jsonl"), 1, "cannot read"),
        (("-i", tmp_path / "in.json", "-o", tmp_path / "out.jsonl"), 1, "in.json"),
        ((*inside, "-o", tmp_path / "none" / "out.jsonl"), 1, "cannot write"),
    ):
        assert batch(*given) == code
        assert sentence in capsys.readouterr().err
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


def test_progress_has_an_end(tmp_path, capsys, monkeypatch):
    (tmp_path / "in.txt").write_text("\n".join(STARTS))
    monkeypatch.setattr("bitnet.cli.batch.LOG_S", 0.0)
    assert batch("-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 3) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6
    assert told[4].startswith("5 of 5 prompts (100%), ")
    assert told[4].endswith(" tokens/s, 0:00:00 left")
