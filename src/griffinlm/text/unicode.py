"""Text that UTF-8 can write."""

from griffinlm.text.errors import TokenizerError


def well_formed(text: object, name: str = "text") -> str:
    """`text` with every lone surrogate as U+FFFD, as a browser would send it; pairs become their character.

    Raises:
        TokenizerError: `text` is no string.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"{name} is {type(text).__name__}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
