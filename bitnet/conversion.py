"""From one format to another: what `bitnet convert` does.

A checkpoint's tensors are read one after another under their Hugging Face names, masters are quantised, and a writer
of ``formats/`` stores them. Codes and scales stay the same bits, or the conversion is refused with the reason.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bitnet._core import packing as packings
from bitnet._core import quant
from bitnet._core.head import Int8Rows
from bitnet.config import EngineConfig
from bitnet.errors import ConfigurationError, FormatError
from bitnet.formats import open_checkpoint
from bitnet.formats.gguf_write import GGUF_TYPES, write_gguf
from bitnet.formats.hugging_face_write import write_packed_folder
from bitnet.formats.panels import HEAD, write_panels_folder
from bitnet.formats.sums import BESIDE as SUM_BESIDE
from bitnet.formats.sums import CHECKSUMS
from bitnet.formats.writing import Codes, Item, new_checkpoint
from bitnet.hub import local_path
from bitnet.model import packing_of
from bitnet.models import family
from bitnet.tokenizer import Tokenizer
from bitnet.vocabulary import metadata_of

__all__ = ["FORMATS", "convert", "write"]

HEAD_ROWS = 4096  # quantised at once

FORMATS = ("bitnet", "hugging_face", "gguf")
"""What `convert` writes."""

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
          "generation_config.json", "LICENSE", "1_Pooling/config.json", "modules.json")  # fmt: skip


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str = "bitnet",
    gguf_type: str = "I2_S",
    packing: str = "auto",
    round_scales: bool = False,
    force: bool = False,
    i2s_layout: str = "auto",
    hidden_act: str = "auto",
    progress: Callable[[int, int, str], object] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint in another format.

    Parameters
    ----------
    source : str
        A Hugging Face folder, a GGUF file, or what this function wrote.
    target : str
        What is to be written: it appears when it is whole.
    to : {"bitnet", "hugging_face", "gguf"}
        A folder of weights as kernels read them, which is opened at once and shared by processes; a folder of packed
        weights for Transformers; or a GGUF file.
    gguf_type : {"I2_S", "TQ1_0", "TQ2_0"}
        Of a GGUF file: the type of ternary weights.
    packing : {"auto", "i2", "t5"}
        Of a folder "bitnet".
    round_scales : bool, optional
        Whether scales may be rounded to float16, which TQ1_0 and TQ2_0 have. Otherwise such a model is refused.
    force : bool, optional
        Whether `target` may be replaced.
    i2s_layout, hidden_act
        As of `EngineConfig`, where `source` leaves it open.
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.

    Returns
    -------
    dict
        ``path``, ``bytes``, ``sha256`` (file name to checksum; a folder has them in ``SHA256SUMS``, beside a GGUF file
        lies its ``.sha256``) and ``notes``: what was decided, or left out, as sentences.

    Raises
    ------
    ModelLoadError
        If the format cannot hold the model, or `target` is there already.
    FormatError
        If `source` is damaged.
    """
    for name, got, known in (("to", to, FORMATS), ("gguf_type", gguf_type, GGUF_TYPES)):
        if got not in known:
            raise ConfigurationError.choice(name, got, known)
    engine_config = EngineConfig(packing=packing, hidden_act=hidden_act, i2s_layout=i2s_layout)
    target = os.path.abspath(os.fspath(target))
    with open_checkpoint(local_path(source), i2s_layout) as checkpoint, new_checkpoint(target, force) as scratch:
        write(checkpoint, scratch, to, engine_config, gguf_type, round_scales, progress)
        notes = list(checkpoint.notes)
    sums, size = _sums(target)
    return {"path": target, "bytes": size, "sha256": sums, "notes": notes}


def write(
    checkpoint: Any,
    scratch: str,
    to: str,
    engine_config: EngineConfig,
    gguf_type: str = "I2_S",
    round_scales: bool = False,
    progress: Callable[[int, int, str], object] | None = None,
    change: Callable[[list[Item]], list[Item]] | None = None,
) -> None:
    """Write an open checkpoint, not atomically.

    Parameters
    ----------
    checkpoint : Checkpoint
    scratch : str
        The file or folder, which is not there.
    to, gguf_type, round_scales, progress
        As of `convert`.
    engine_config : EngineConfig
        Whose packing and gate function count.
    change : callable, optional
        Gives other items instead of the checkpoint's.
    """
    hidden_act = engine_config.hidden_act
    raw = dict(checkpoint.config)
    if hidden_act != "auto":
        raw["hidden_act"] = hidden_act
    config = family(raw, checkpoint.path).config(raw)
    items = [_item(checkpoint, name) for name in checkpoint.names() if _is_stored(checkpoint, name)]
    items = items if change is None else change(items)
    notes = checkpoint.notes
    if to == "gguf":
        template = checkpoint.chat_template
        write_gguf(scratch, config, items, gguf_type, _vocabulary(checkpoint, config, notes), template,
                   round_scales, progress)  # fmt: skip
    else:
        files = _files(checkpoint, notes)
        if to == "hugging_face":
            write_packed_folder(scratch, raw, items, files, progress)
        else:
            pack = _Packer(packing_of(config, engine_config))
            items += _head_items(checkpoint, config)
            write_panels_folder(scratch, raw, items, pack, checkpoint.activations, files, progress)


class _Packer:
    """Packs codes, in a packing that can have their groups."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _named(self, group_size: int | None) -> str:
        return self.name if group_size is None else "i2"

    def __call__(self, found: Codes) -> packings.PackedWeight:
        return packings.pack_codes(found.codes, found.scale, self._named(found.group_size), found.group_size)

    def size(self, rows: int, cols: int, group_size: int | None) -> tuple[str, int]:
        name = self._named(group_size)
        return name, -(-rows // 16) * -(-cols // packings.tile_cols(name)) * 64


def _is_stored(checkpoint: Any, name: str) -> bool:
    """Whether a tensor is one of the model's, and no scale of another."""
    is_scale = name.endswith(".weight_scale") and f"{name.removesuffix('_scale')}" in checkpoint
    return not is_scale and not name.endswith((".rotary_emb.inv_freq", HEAD, f"{HEAD}_scale"))


def _item(checkpoint: Any, name: str) -> Item:
    layer, info = name.removesuffix(".weight"), checkpoint.info(name)
    if name.endswith(".weight") and len(checkpoint.matrix_shape(layer)) == 2 and checkpoint.is_quantized(layer):
        return Item(layer, "ternary", checkpoint.matrix_shape(layer), lambda: _codes(checkpoint, layer))
    if info.dtype in ("F16", "BF16"):
        kind = np.float16 if info.dtype == "F16" else np.uint16
        return Item(name, "floats", info.shape, lambda: checkpoint.raw(name).view(kind), info.dtype)
    return Item(name, "floats", info.shape, lambda: checkpoint.floats(name))


def _codes(checkpoint: Any, layer: str) -> Codes:
    stored = checkpoint.ternary(layer)
    checkpoint.let_go()
    scale = np.asarray(0 if stored.scale is None else stored.scale, np.float32)
    if stored.kind == "packed":
        fields = [(stored.data >> 2 * k & 3).astype(np.int8) - np.int8(1) for k in range(4)]
        codes = np.concatenate(fields)
        if (codes > 1).any():
            raise FormatError.value(checkpoint.path, f"a code of '{layer}'", 3, "0, 1 or 2")
        return Codes(codes, scale)
    if stored.kind == "codes":
        return Codes(stored.codes(), scale, stored.group_size)
    if stored.kind == "panels":
        weight = packings.from_packed_bytes(
            stored.data, stored.rows, stored.cols, scale, stored.packing, stored.group_size
        )
        return Codes(weight.unpack(), scale, stored.group_size)
    masters = stored.floats()
    s = quant.reciprocal_scales(masters)
    return Codes(quant.ternarize(masters, s), np.asarray(quant.scales_of(s), np.float32))


def _head_items(checkpoint: Any, config: Any) -> list[Item]:
    """The output head in 8 bits, as an engine has it by default, and as kernels read it."""
    source = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    rows, cols = checkpoint.info(source).shape
    kept = []

    def codes() -> Any:
        table = Int8Rows(rows, cols)
        for start in range(0, rows, HEAD_ROWS):
            some = checkpoint.floats(source, slice(start, min(start + HEAD_ROWS, rows)))
            table.fill(start, *quant.quantize_activations(some))
            checkpoint.let_go()
        kept.append(table.scales)
        return table.packed_bytes

    return [
        Item(HEAD, "panels", (Int8Rows.bytes_of(rows, cols),), codes, "U8"),
        Item(f"{HEAD}_scale", "floats", (rows,), lambda: kept.pop()),
    ]


def _files(checkpoint: Any, notes: list[str]) -> dict[str, Any]:
    """What lies beside the weights: the tokenizer, its settings, the chat template."""
    found: dict[str, Any] = {}
    if checkpoint.format == "gguf":
        if checkpoint.generation_config:
            found["generation_config.json"] = checkpoint.generation_config
        if checkpoint.chat_template is not None:
            found["chat_template.jinja"] = checkpoint.chat_template
        with _noted(notes):
            if checkpoint.tokenizer_path is not None:
                tokenizer = Tokenizer.from_metadata(checkpoint.metadata, checkpoint.tokenizer_path)
                found["tokenizer.json"] = tokenizer.to_json()
        return found
    for name in ("tokenizer.json", *BESIDE):
        path = os.path.join(checkpoint.path, name)
        if "/" not in name and os.path.isfile(path):
            with open(path, encoding="utf-8", newline="") as file:
                found[name] = file.read()
    return found


def _vocabulary(checkpoint: Any, config: Any, notes: list[str]) -> dict[str, Any] | None:
    if checkpoint.format == "gguf":
        return {key: one for key, one in checkpoint.metadata.items()
                if key.startswith("tokenizer.ggml.") and isinstance(one, str | int | list | np.ndarray)}  # fmt: skip
    if checkpoint.tokenizer_path is None:
        notes.append("without a vocabulary: there is no tokenizer.json")
        return None
    with _noted(notes), open(checkpoint.tokenizer_path, encoding="utf-8") as file:
        add_bos = checkpoint.tokenizer_config.get("add_bos_token")
        return metadata_of(json.load(file), checkpoint.tokenizer_path, config.vocab_size, add_bos)
    return None


@contextlib.contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """A vocabulary that cannot be written is left out, and that is said."""
    try:
        yield
    except FormatError as error:
        notes.append(f"without a vocabulary: {error}")


def _sums(path: str) -> tuple[dict[str, str], int]:
    """The checksums of what was written, and its bytes."""
    is_file = os.path.isfile(path)
    with open(path + SUM_BESIDE if is_file else os.path.join(path, CHECKSUMS), encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("  ", 1) for line in file]
    folder = os.path.dirname(path) if is_file else path
    return {name: digest for digest, name in pairs}, sum(os.path.getsize(os.path.join(folder, one)) for _, one in pairs)
