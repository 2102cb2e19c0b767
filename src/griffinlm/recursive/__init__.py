"""Recursive models: a model's layers tied to a few shared ones, each with a low-rank rest of its own."""

from griffinlm.recursive.conversion import MatrixReport as MatrixReport
from griffinlm.recursive.conversion import write_recursive as write_recursive
from griffinlm.recursive.settings import Recursion as Recursion
from griffinlm.recursive.settings import RecursiveError as RecursiveError
