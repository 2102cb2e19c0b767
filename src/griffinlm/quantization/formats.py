"""How the weights of a matrix may be stored, and the shapes of the arrays that hold them."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from griffinlm.errors import GriffinError

BLOCK_SIZES = (16, 32, 64, 128, 256)
OFFERED_NAMES = ("float32", "int4-block32", "int4-block128", "int8-block32", "int8-block128", "int8-channel")


class QuantizationError(GriffinError):
    """A format or recipe that does not exist, or does not fit the model."""


class ArraySpec(NamedTuple):
    """Type and shape of one stored array."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Format:
    """How a matrix [N, K] (out, in) is stored. Blocks and channels are whole numbers q with float32 scales.

    | format | numbers | scales | value |
    | --- | --- | --- | --- |
    | float32 | float32 [N, K] | | itself |
    | int4-block, int8-block | uint8 [N, ceil(K/block), block*bits/8] | [N, ceil(K/block)] | (q - 2^(bits-1)) s |
    | int8-channel | int8 [N, K], -127..127 | [N] | q s |

    Blocks lie as ONNX Runtime's MatMulNBits reads them: of two 4-bit numbers in a byte the first is the low one, and
    what the last block lacks is filled with zeros, q = 2^(bits-1). Channels lie as its QGemm reads a transposed matrix.
    """

    bits: int
    block_size: int | None = None
    """Inputs that share a scale; None in float32, and in channels, where all inputs of an output do."""

    def __post_init__(self) -> None:
        is_block = self.bits in (4, 8) and self.block_size in BLOCK_SIZES
        if not is_block and (self.bits, self.block_size) not in ((32, None), (8, None)):
            raise QuantizationError(
                f"a format of {self.bits} bits in blocks of {self.block_size} does not exist; "
                f"offered are {', '.join(OFFERED_NAMES)}"
            )

    @classmethod
    def parse(cls, name: str) -> "Format":
        """The format of a name, such as `int4-block128`.

        Raises:
            QuantizationError: there is no such format.
        """
        if name == "float32":
            return cls(32)
        if name == "int8-channel":
            return cls(8)
        found = re.fullmatch(r"int([48])-block(16|32|64|128|256)", name)
        if found is None:
            raise QuantizationError(f"no format is called {name[:60]!r}; offered are {', '.join(OFFERED_NAMES)}")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        if self.bits == 32:
            return "float32"
        return "int8-channel" if self.block_size is None else f"int{self.bits}-block{self.block_size}"

    @property
    def is_quantized(self) -> bool:
        return self.bits != 32

    @property
    def is_channel(self) -> bool:
        """Whether all inputs of an output share one scale."""
        return self.is_quantized and self.block_size is None

    def fitted(self, num_columns: int) -> "Format":
        """This format with blocks no larger than a row of `num_columns` needs."""
        if self.block_size is None:
            return self
        enough = next((size for size in BLOCK_SIZES if size >= num_columns), BLOCK_SIZES[-1])
        return Format(self.bits, min(self.block_size, enough))

    def arrays(self, num_rows: int, num_columns: int) -> tuple[ArraySpec, ArraySpec]:
        """The arrays of numbers and of scales for a matrix [num_rows, num_columns]; for the quantized formats."""
        assert self.is_quantized
        if self.block_size is None:
            return ArraySpec("int8", (num_rows, num_columns)), ArraySpec("float32", (num_rows,))
        num_blocks = -(-num_columns // self.block_size)
        packed = (num_rows, num_blocks, self.block_size * self.bits // 8)
        return ArraySpec("uint8", packed), ArraySpec("float32", (num_rows, num_blocks))


FLOAT32 = Format(32)
