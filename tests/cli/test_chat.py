"""``bitnet chat``: through a terminal of its own, and through pipes."""

import io
import itertools
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from cli_checkpoints import with_tokenizer

import bitnet
from bitnet.cli import main
from bitnet.cli.chat import _Chat, _Screen
from bitnet.cli.conversation import Conversation

ENDED = re.compile(r"ended by: \w+")


class Terminal:
    """``bitnet chat`` at a terminal, as a person has it: bytes in, and what is on the screen."""

    def __init__(self, *arguments, **environment):
        controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bitnet", "chat", *arguments], cwd=Path(bitnet.__file__).parents[1],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}, stdin=terminal, stdout=terminal,
            stderr=terminal, start_new_session=True, preexec_fn=lambda: _control(terminal),
        )  # fmt: skip
        os.close(terminal)
        self.file, self.text = controller, ""

    def expect(self, pattern, seconds=60):
        """Read until the pattern is there; what was before it, and it."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.file], [], [], 0.5)[0]:
                try:
                    data = os.read(self.file, 65536)
                except OSError:  # the other end is closed
                    data = b""
                assert data or re.search(pattern, self.text), f"it ended without {pattern!r}: {self.text!r}"
                self.text += data.decode(errors="replace")
        seen, self.text = self.text[: found.end()], self.text[found.end() :]
        return seen

    def send(self, text):
        os.write(self.file, text.encode())

    def say(self, text):
        """Enter a line at the prompt; what comes until the next prompt."""
        self.send(text + "\r")
        return self.expect(r"\n(\x1b\[\?2004h)?> ")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.file)


def _control(terminal):
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def opening(*arguments, **environment):
        history = str(tmp_path / "state" / "history")
        one = Terminal("--num-threads", "1", "--history", history, *arguments, **environment)
        opened.append(one)
        one.expect(r"> $")
        return one

    yield opening
    for one in opened:
        one.close()


def plain(text):
    """Without what moves the cursor, and without speeds that are wiped out again."""
    text = re.sub(r"\x1b\[2m  [\d.]+ tokens/s\x1b\[0m\x1b\[\d+D", "", text)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "")


def test_a_conversation_in_a_terminal(terminal, tmp_path):
    chat = terminal("--max-new-tokens", "60")
    first = chat.say("Once upon a time, there was a cat.")
    assert re.search(r"\x1b\[2m  [\d.]+ tokens/s\x1b\[0m\x1b\[\d+D", first)  # the speed, while it comes
    with bitnet.load(num_threads=1) as model:
        said = [{"role": "user", "content": "Once upon a time, there was a cat."}]
        answer = model.chat(said, template="plain", max_new_tokens=60).text
        assert answer in plain(first)
        assert ENDED.search(first)
        said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Then"}]
        second = model.chat(said, template="plain", max_new_tokens=60).text
    assert second in plain(chat.say("Then"))  # the first turn is remembered
    stats = chat.say("/stats")
    assert "messages: 4; context: " in stats
    assert re.search(r"; [1-9]\d* tokens of its prompt were there already", stats)

    file = tmp_path / "talk.json"
    assert f"(4 messages: {file})" in chat.say(f"/save {file}")
    assert [one["role"] for one in json.loads(file.read_text())["messages"]] == ["user", "assistant"] * 2
    chat.say("/clear")
    assert "messages: 0; context: 0 of 512" in chat.say("/stats")
    assert f"(4 messages: {file})" in chat.say(f"/load {file}")
    assert second in plain(chat.say("/retry"))
    assert "messages: 4;" in chat.say("/stats")
    assert "(taken back: 'Then')" in chat.say("/undo")
    assert "messages: 2; context: " in chat.say("/stats")
    assert second in plain(chat.say("Then"))
    chat.send("/edit\r")
    chat.expect(r"> Then")  # it stands there to be edited, here into the same
    edited = plain(chat.say("\x7f\x7f\x7f\x7fThen"))
    assert second in edited
    assert "messages: 4;" in chat.say("/stats")
    chat.say("/undo")
    chat.say("/undo")
    assert "messages: 0;" in chat.say("/stats")
    assert "'/undo' is no command here; /help lists them" in chat.say("/undo")
    assert f"(4 messages: {file})" in chat.say(f"/load {file}")

    assert "nothing" in chat.say("/system")
    chat.say("/system Be brief.")
    assert "Be brief." in plain(chat.say("/system")).split("\n", 1)[1]
    assert "/retry         answer the last message once more" in chat.say("/help")
    assert "'/sing a' is no command here; /help lists them" in chat.say("/sing a")
    assert "cannot read 'none': No such file" in chat.say("/load none")
    chat.send("\x04")
    assert chat.process.wait(timeout=30) == 0


def test_lines_are_edited_and_remembered(terminal, tmp_path):
    chat = terminal("--max-new-tokens", "3")
    chat.say("/system One dxx\x7f\x7fay")  # the key for backspace
    assert "One day" in plain(chat.say("/system")).split("\n", 1)[1]
    assert chat.say("\x1b[A\x1b[A").count("/system One day") >= 1  # the key up, twice
    chat.send('"""\r')
    chat.expect(r"\.\.\. ")
    chat.send("Tom had\r")
    chat.expect(r"\.\.\. ")
    with bitnet.load(num_threads=1) as model:
        talk = [{"role": "system", "content": "One day"}, {"role": "user", "content": "Tom had\na ball"}]
        assert model.chat(talk, template="plain", max_new_tokens=3).text in plain(chat.say('a ball"""'))
    chat.send("/exit\r")
    assert chat.process.wait(timeout=30) == 0
    history = tmp_path / "state" / "history"
    assert "/system One day" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = terminal()
    assert "/exit" in plain(again.say("\x1b[A\x1b[A\x15/help"))


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(terminal):
    chat = terminal("--max-new-tokens", "400", "--min-new-tokens", "400")
    for _ in range(10):
        chat.send("Once upon a time\r")
        chat.expect(r"Once upon a time\r\n")
        chat.expect(r"tokens/s")
        chat.send("\x03")
        seen = chat.expect(r"ended by: \w+")
        chat.expect(r"> $")
        if "stopped; " in seen:
            break
        chat.say("/clear")  # it was over before it could be stopped
    assert "stopped; prompt: " in seen
    assert seen.endswith("ended by: cancelled")
    assert "messages: 2;" in chat.say("/stats")
    for _ in range(20):  # Python's input does not hear of a signal that comes just before it begins to wait
        time.sleep(0.2)
        chat.send("\x03")
        if select.select([chat.file], [], [], 0.5)[0]:
            break
    chat.expect(r"\(Ctrl-D or /exit leaves\)")
    chat.expect(r"> $")
    assert "ended by: length" in chat.say("One day")
    assert "messages: 4;" in chat.say("/stats")
    assert chat.process.poll() is None


def test_ctrl_c_just_as_an_answer_ends_keeps_the_conversation(model, monkeypatch):
    talk = Conversation(model, "plain")
    with bitnet.InferenceEngine() as engine:
        chat = _Chat(engine, model, bitnet.GenerationConfig(max_new_tokens=3), None, talk, True)
        monkeypatch.setattr("builtins.input", lambda prompt: "w9")
        chat.hear(True)
        assert len(talk.messages) == 2
        whole = chat._print

        def late(stream):
            whole(stream)
            raise KeyboardInterrupt

        monkeypatch.setattr(chat, "_print", late)
        chat.hear(True)
        assert chat.is_going_on
        assert [one["role"] for one in talk.messages] == ["user", "assistant"]
        with pytest.raises(KeyboardInterrupt):
            chat.hear(False)


def test_a_pipe_gives_answers_only(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n\nOne day\n"))
    assert main(["chat", "--max-new-tokens", "5", "--num-threads", "1", "--quiet"]) == 0
    output, complaints = capsys.readouterr()
    with bitnet.load(num_threads=1) as model:
        talk = [{"role": "user", "content": "Once upon a time"}]
        first = model.chat(talk, template="plain", max_new_tokens=5).text
        talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "One day"}]
        assert output == f"{first}\n{model.chat(talk, template='plain', max_new_tokens=5).text}\n"
    assert complaints == ""


def test_what_it_says_of_itself(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat"]) == 0
    assert "no chat template, so most likely it was not trained to chat" in capsys.readouterr().err
    folder = with_tokenizer(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("w9\n" + "w5 " * 200 + "\n/stats\n/load x\n"))
    assert main(["chat", "-m", folder, "--max-new-tokens", "3"]) == 0
    output, complaints = capsys.readouterr()
    assert "was not trained to chat" not in complaints
    assert "bitnet: position 20" in complaints  # too long, and told; the conversation goes on without it
    assert "messages: 2;" in output
    assert "bitnet: cannot read 'x'" in complaints


# ---- what is kept


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with bitnet.load(with_tokenizer(tmp_path_factory.mktemp("chat") / "model"), num_threads=1) as loaded:
        yield loaded.model


def test_the_oldest_turns_are_left_out(model):
    talk = Conversation(model, "{% for m in messages %}{{ m.content }} {% endfor %}", "w3")
    for number in range(12):
        talk.messages += [{"role": "user", "content": f"w{10 + number} " * 8}, {"role": "assistant", "content": "w4"}]
    talk.messages.append({"role": "user", "content": "w5"})
    ids, left_out = talk.prompt(20)
    assert 90 < len(ids) <= 128 - 20
    assert ids[0] == 3
    assert ids[-1] == 5
    assert left_out % 2 == 0
    assert left_out >= 2
    assert len(talk.messages) == 25
    assert len(talk.prompt(10**6)[0]) <= 96  # a quarter of the context is enough for an answer
    talk.messages = [{"role": "user", "content": "w5 " * 200}]
    assert talk.prompt(20)[1] == 0


def test_files(model, tmp_path):
    talk = Conversation(model, "plain", "w3")
    talk.messages = [{"role": "user", "content": "ä 😀 \ud800"}]
    file = str(tmp_path / "talk.json")
    talk.save(file)
    talk.save(file)  # it is one of ours, so it is replaced
    other = Conversation(model, "plain")
    other.load(file)
    assert (other.system, other.messages) == ("w3", [{"role": "user", "content": "ä 😀 ?"}])
    foreign = tmp_path / "foreign"
    foreign.write_text("[]")
    for data in ("[]", "{", '{"messages": 3}', '{"messages": [{"role": "user"}]}'):
        foreign.write_text(data)
        with pytest.raises(bitnet.ConfigurationError, match="a conversation: an object with 'messages'"):
            other.load(str(foreign))
    foreign.write_text("{}")
    with pytest.raises(bitnet.ModelLoadError, match="exists already"):
        other.save(str(foreign))
    with pytest.raises(bitnet.ModelLoadError, match="cannot write"):
        other.save(str(tmp_path / "none" / "talk.json"))
    assert sorted(os.listdir(tmp_path)) == ["foreign", "talk.json"]
    assert other.messages


def test_the_speed_stands_only_where_the_cursor_comes_back(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    out = Screen()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    seconds = itertools.count(1)
    monkeypatch.setattr("bitnet.cli.chat.time", types.SimpleNamespace(monotonic=lambda: next(seconds) / 10))
    with _Screen() as screen:
        for text in ("a", "b", "日" * 10, "c" * 5, "\n", "d"):
            screen.put(text, True)
    shown = [bool(re.search("tokens/s", part)) for part in out.getvalue().split("\x1b[K")[1:]]
    assert shown == [False, True, True, False, False, True, False]
    assert plain(out.getvalue()) == "ab" + "日" * 10 + "c" * 5 + "\nd\n"
