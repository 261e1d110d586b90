"""The program `glimpse` of an installed package: apart from it, so that nothing of Python is loaded before the program takes over."""
import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(__file__).parent / "glimpse" / "bin" / "glimpse"
    os.execv(program, [str(program), *sys.argv[1:]])
