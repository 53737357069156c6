"""A checkpoint with a tokenizer, of which tests/data has none."""

import json
import shutil

from checkpoints import DATA

KNOWN = "'bitnet', 'gemma3_text', 'llama', 'qwen3'"  # families
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"


def with_tokenizer(folder, name="bitnet-packed-auto", template=TEMPLATE):
    """Copy a checkpoint, and give it a tokenizer of 512 words (``w3`` is token 3) and a chat template."""
    import tokenizers

    shutil.copytree(DATA / name, folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 512)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    if template:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return str(folder)


def changed_config(folder, name="bitnet-packed-auto", **changes):
    """Copy a checkpoint, and change its ``config.json``."""
    shutil.copytree(DATA / name, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)
