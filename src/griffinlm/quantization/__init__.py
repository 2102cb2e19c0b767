"""The integer grid: formats, scales, packing, and which parameter gets which format. numpy alone."""

from griffinlm.quantization.formats import FLOAT32 as FLOAT32
from griffinlm.quantization.formats import Format as Format
from griffinlm.quantization.formats import QuantizationError as QuantizationError
from griffinlm.quantization.matrix import Quantized as Quantized
from griffinlm.quantization.matrix import dequantize as dequantize
from griffinlm.quantization.matrix import quantize as quantize
from griffinlm.quantization.recipe import RECIPES as RECIPES
from griffinlm.quantization.recipe import Recipe as Recipe
from griffinlm.quantization.recipe import recipe_of as recipe_of
