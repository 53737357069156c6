"""Text to tokens and back as llama.cpp has it: in bytes, and with special tokens only where they are asked for."""

import re
from typing import Any

__all__ = ["Pieces"]

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for, as of GPT-2: printable ones for themselves,
    the others in their order for the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Pieces:
    """A tokenizer, with the methods of llama.cpp's vocabularies.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Any) -> None:
        import tokenizers

        self._tokenizer = tokenizer
        self._with_special = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        self._as_text = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        self._as_text.encode_special_tokens = True
        added = self._as_text.get_added_tokens_decoder()
        self._added = {id: (token.content, token.special) for id, token in added.items()}
        self._alphabet = _byte_level_alphabet()
        self._is_byte_level = self._decodes("aĠb", "a b")
        self._is_spm = self._decodes("<0x41>", "A")
        bos = tokenizer.bos_token_id
        self.adds_bos = bos is not None and tokenizer.encode("a")[:1] == [bos]

    def _decodes(self, token: str, text: str) -> bool:
        decoder = self._as_text.decoder
        return decoder is not None and decoder.decode([token]) == text

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Make token ids of a text.

        Parameters
        ----------
        text : bytes
            In UTF-8; what is none becomes U+FFFD.
        add_bos : bool
            Whether to begin with the token that texts begin with, if this vocabulary has them begin so.
        special : bool
            Whether special tokens that are written out become tokens.

        Returns
        -------
        list of int
        """
        backend = self._with_special if special else self._as_text
        words = text.decode("utf-8", errors="replace")
        ids: list[int] = backend.encode(words, add_special_tokens=False).ids if words else []
        return [self._tokenizer.bos_token_id, *ids] if add_bos and self.adds_bos else ids

    def detokenize(self, tokens: list[int], is_start: bool, special: bool) -> bytes:
        """Write the bytes of tokens.

        Parameters
        ----------
        tokens : list of int
        is_start : bool
            Whether a text begins here: then the space that SentencePiece puts after its first token is left out.
        special : bool
            Whether to write special tokens too.

        Returns
        -------
        bytes
        """
        if not (self._is_byte_level or self._is_spm):
            return str(self._tokenizer.decode(tokens, skip_special_tokens=not special)).encode()
        found = b"".join(self._bytes(int(id), special) for id in tokens)
        first = self._tokenizer.bos_token_id
        if self._is_spm and is_start and not special and list(tokens[:1]) == [first]:
            found = found.removeprefix(b" ")
        return found

    def _bytes(self, id: int, special: bool) -> bytes:
        if id in self._added:
            content, is_special = self._added[id]
            return content.encode() if special or not is_special else b""
        token: str | None = self._as_text.id_to_token(id)
        if token is None:
            return b""
        if self._is_byte_level:
            known = all(letter in self._alphabet for letter in token)
            return bytes(self._alphabet[letter] for letter in token) if known else token.encode()
        found = BYTE_TOKEN.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
