"""From text files to batches: a BPE vocabulary, documents as token ids, and rows packed full of whole documents.

A document never sees another one: each row says which token is of which document, and attention is masked by it.
"""

import itertools
import os
import re

import numpy as np

from bitnet.errors import ConfigurationError, TrainingError

__all__ = ["END_OF_TEXT", "Packed", "Rows", "encode_documents", "pack", "read_documents", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"


def read_documents(path, separator=END_OF_TEXT):
    """Read the documents of a text file.

    Parameters
    ----------
    path : str
        UTF-8.
    separator : str
        What stands on a line of its own between two documents.

    Returns
    -------
    list of str

    Raises
    ------
    TrainingError
        If it cannot be read or has no text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError.unreadable(os.fspath(path), getattr(error, "strerror", None) or error) from error
    documents = [one.strip() for one in re.split(rf"^{re.escape(separator)}$", text, flags=re.MULTILINE)]
    documents = [one for one in documents if one]
    if not documents:
        raise TrainingError.unusable(os.fspath(path), "it has no text")
    return documents


def train_tokenizer(documents, vocab_size):
    """Train a byte-level BPE vocabulary, whose token 0 is `END_OF_TEXT`.

    Parameters
    ----------
    documents : iterable of str
    vocab_size : int
        Of tokens, 257 at least: the bytes and the end of a text.

    Returns
    -------
    tokenizers.Tokenizer
        It puts token 0 in front of each text: a text begins where another one ended.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < 257:
        raise ConfigurationError.value("train_tokenizer", "vocab_size", vocab_size, "257 or more: the bytes and an end")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def encode_documents(tokenizer, documents, length):
    """Make token ids of documents, each cut into pieces that fit a row.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    documents : list of str
    length : int
        Of a row: a piece has at most ``length + 1`` tokens, and the next one begins with its last.

    Returns
    -------
    list of ndarray of int32
        The end of a text stands at both ends of each document.
    """
    end, pieces = tokenizer.token_to_id(END_OF_TEXT), []
    for encoded in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids = np.array([end, *encoded.ids, end], np.int32)
        # The pieces of a long document are alike in length: a last one of a few tokens would have no context.
        count = -(-(len(ids) - 1) // length)
        cuts = np.linspace(0, len(ids) - 1, count + 1).astype(int)
        pieces.extend(ids[a : b + 1] for a, b in itertools.pairwise(cuts))
    return pieces


class Packed:
    """Rows full of documents.

    Attributes
    ----------
    ids, targets, documents, positions : ndarray, shape (rows, length)
        int32, targets -100 where there is nothing to predict.
    """

    def __init__(self, rows, length):
        self.ids = np.zeros((rows, length), np.int32)
        self.targets = np.full((rows, length), -100, np.int32)
        self.documents = np.full((rows, length), -1, np.int32)
        self.positions = np.zeros((rows, length), np.int32)
        self.length = length

    def __len__(self):
        return len(self.ids)

    def row(self, number):
        """Get the four arrays of a row."""
        return self.ids[number], self.targets[number], self.documents[number], self.positions[number]


def pack(pieces, length, rng=None, window=2048):
    """Put documents into rows: of each window of documents, the longest first, each into the fullest row with room.

    Parameters
    ----------
    pieces : list of ndarray
        Of `encode_documents`.
    length : int
    rng : numpy.random.Generator, optional
        To shuffle the pieces, and then the rows.
    window : int
        The number of documents that are packed together.

    Returns
    -------
    Packed
    """
    order = np.arange(len(pieces)) if rng is None else rng.permutation(len(pieces))
    sizes = np.array([len(one) - 1 for one in pieces])
    rows = []
    for start in range(0, len(order), window):
        rows += _best_fit(order[start : start + window], sizes, length)
    if rng is not None:
        rows = [rows[j] for j in rng.permutation(len(rows))]
    packed = Packed(len(rows), length)
    for r, members in enumerate(rows):
        at = 0
        for number, i in enumerate(members):
            ids = pieces[i]
            span = slice(at, at + len(ids) - 1)
            packed.ids[r, span], packed.targets[r, span] = ids[:-1], ids[1:]
            packed.documents[r, span], packed.positions[r, span] = number, np.arange(len(ids) - 1)
            at = span.stop
    return packed


def _best_fit(members, sizes, length):
    rows, with_room = [], [[] for _ in range(length + 1)]  # rows by the room they have left
    for i in sorted(members, key=lambda i: -sizes[i]):
        room = next((n for n in range(sizes[i], length + 1) if with_room[n]), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(i)
        with_room[room - sizes[i]].append(row)
    return rows


class Rows:
    """An endless stream of rows, each epoch packed from another order of the documents.

    Parameters
    ----------
    pieces : list of ndarray
        Of `encode_documents`.
    length : int
    seed : int
    """

    def __init__(self, pieces, length, seed):
        self._pieces, self._length, self._seed = pieces, length, seed
        self._packed = self._packed_epoch = None
        self._epoch, self._at = 0, 0

    def take(self, count):
        """Get the next rows, each as of `Packed.row`."""
        taken = []
        while len(taken) < count:
            if self._packed_epoch != self._epoch:
                rng = np.random.default_rng([self._seed, self._epoch])
                self._packed, self._packed_epoch = pack(self._pieces, self._length, rng), self._epoch
            taken.append(self._packed.row(self._at))
            self._at += 1
            if self._at == len(self._packed):
                self._epoch, self._at = self._epoch + 1, 0
        return taken

    @property
    def epochs(self):
        """How often the documents have been gone through."""
        return self._epoch + (self._at / len(self._packed) if self._packed else 0)

    @property
    def place(self):
        """Where the stream is, for `go_to`."""
        return self._epoch, self._at, self._length

    def go_to(self, place):
        """Go on from a place; where rows were of another length, from the beginning of its next epoch."""
        self._epoch, self._at, length = place
        if length != self._length:
            self._epoch, self._at = self._epoch + 1, 0
