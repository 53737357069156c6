"""Rows of test_raises.py for the interfaces of other libraries."""

import functools
import sys
from unittest import mock

from checkpoints import DATA

from bitnet.compat import Llama, LlamaGrammar
from bitnet.compat.grammar import grammar_of
from bitnet.compat.settings import processing

CHECKPOINT = str(DATA / "llama-packed-bitlinear")
SPM = str(DATA.parent / "vocab" / "ggml-vocab-llama-spm.gguf")


@functools.cache
def llama(n_ctx=8):
    return Llama(n_ctx=n_ctx, n_threads=1)


def without_llguidance():
    with mock.patch.dict(sys.modules, {"llguidance.gbnf_to_lark": None}):
        LlamaGrammar.from_string("root ::= [a]")


ROWS = [
    ("compat/llama.py", "ConfigurationError.value", lambda: Llama(lora_path="a"),
     "Llama.lora_path is 'a'; it must be None, which changes nothing"),
    ("compat/llama.py", "ConfigurationError.unknown_field", lambda: Llama(verbos=True),
     "Llama has no field 'verbos'; use 'verbose'"),
    ("compat/llama.py", "ConfigurationError.value", lambda: Llama(type_k=2),
     "Llama.type_k, type_v is (2, None); it must be both 0, 1 or 8"),
    ("compat/llama.py", "ConfigurationError.choice", lambda: Llama(pooling_type=4),
     "pooling_type is 4; it must be one of -1, 1, 2, 3"),
    ("compat/llama.py", "ModelLoadError.no_tokenizer", lambda: Llama(CHECKPOINT),
     f"'{CHECKPOINT}' has no tokenizer that can be used; give token ids instead of text"),
    ("compat/llama.py", "ConfigurationError.conflict", lambda: Llama(SPM, vocab_only=True)("a"),
     "Llama: there is no model: it was made with vocab_only=True, or closed"),
    ("compat/llama.py", "ConfigurationError.value", lambda: llama().tokenize("a"),
     "Llama.tokenize.text is 'a'; it must be bytes, in UTF-8"),
    ("compat/llama.py", "ConfigurationError.value", lambda: llama()([1] * 8),
     "Llama.prompt is 'of 8 tokens'; it must be shorter than n_ctx, 8"),
    ("compat/llama.py", "ConfigurationError.choice", lambda: llama().create_chat_completion([], tool_choice="a"),
     "tool_choice is 'a'; it must be one of 'auto', 'none'"),
    ("compat/llama.py", "ConfigurationError.value", lambda: llama().embed(["one " * 8], truncate=False),
     "Llama.embed.input is 'of 10 tokens'; it must be at most 8 of them"),
    ("compat/settings.py", "ConfigurationError.value", lambda: llama()("a", suffix="b"),
     "Llama.suffix is 'b'; it must be None; nothing else is there"),
    ("compat/grammar.py", "ConfigurationError.choice", lambda: grammar_of(None, {"type": "xml"}),
     "response_format is 'xml'; it must be one of 'text', 'json_object', 'json_schema'"),
    ("compat/grammar.py", "ConfigurationError.value", lambda: grammar_of("x"),
     "Llama.grammar is 'x'; it must be a LlamaGrammar or a Grammar"),
    ("compat/grammar.py", "DeviceError.missing_extra", without_llguidance,
     "'llguidance' is not installed; run: pip install 'bitnet-runtime[grammar]'"),
    ("compat/grammar.py", "ConfigurationError.grammar", lambda: LlamaGrammar.from_string("root ::= ("),
     "Grammar.gbnf cannot be used: Expected ')' at line 1, 'root ::= (' ^ ''"),
    ("compat/grammar.py", "ModelLoadError.unreadable", lambda: LlamaGrammar.from_file("none.gbnf"),
     "cannot read 'none.gbnf': No such file or directory"),
    ("compat/settings.py", "_StopHere", lambda: processing(None, lambda ids, logits: True)([], None), ""),
]  # fmt: skip
