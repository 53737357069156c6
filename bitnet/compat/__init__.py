"""Other libraries' interfaces on ours, for code that was written for them.

`Llama` has the shape of llama-cpp-python's class of that name: ``from bitnet.compat import Llama``. Its docstring lists
what differs.
"""

from bitnet.compat.grammar import LlamaGrammar
from bitnet.compat.llama import Llama
from bitnet.compat.settings import LogitsProcessorList, StoppingCriteriaList

__all__ = ["Llama", "LlamaGrammar", "LogitsProcessorList", "StoppingCriteriaList"]
