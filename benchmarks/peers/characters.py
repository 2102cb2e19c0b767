"""A vocabulary of any size in which a character is a token, so that two programs cut a text alike.

Standard library only: the interpreters of other programs import this too.
"""

CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
"""With the ids from 0 on."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""What other characters are written in."""
PRINTABLE = ("\n", *map(chr, range(0x20, 0x7F)))
FIRST_LETTER = 0x10000
"""Letters are the code points from here on: none of them is a space, all of them have four bytes."""


def letters(vocab_size: int) -> list[str]:
    """What is left of a vocabulary for words of one letter.

    Raises:
        ValueError: nothing is left.
    """
    num_letters = vocab_size - len(CONTROL) - len(BYTES) - len(PRINTABLE)
    if num_letters < 1:
        raise ValueError(f"vocab_size is {vocab_size}; it must be {vocab_size - num_letters + 1} or more")
    return [chr(FIRST_LETTER + place) for place in range(num_letters)]


def vocabulary(vocab_size: int) -> list[str]:
    """All tokens by id."""
    return [*CONTROL, *BYTES, *PRINTABLE, *letters(vocab_size)]
