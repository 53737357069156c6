"""The interface of llama-cpp-python: the same code runs with `from llama_cpp import Llama` and a GGUF file.

python examples/llama.py
"""

from bitnet.compat import Llama

with Llama(n_ctx=0, verbose=False, chat_format="plain") as llama:  # of the model that comes with bitnet
    answer = llama("Once upon a time", max_tokens=40, temperature=0.7, stop=["\n"], seed=1)
    print(answer["choices"][0]["text"], answer["usage"])
    for part in llama.create_chat_completion(
        [{"role": "user", "content": "Tom had a red ball."}], max_tokens=30, temperature=0.0, stream=True
    ):
        print(part["choices"][0]["delta"].get("content", ""), end="", flush=True)
    print()
