"""Runs mutmut in a working folder and writes down the outcome of every mutant.

mutmut leaves the text of f-strings alone, and nearly all our messages are f-strings; the operator
here changes them as mutmut changes plain strings.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import libcst as cst
from mutmut.__main__ import cli
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.mutators import mutation_operators
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files


def change_text(node: cst.FormattedString) -> Iterable[cst.FormattedString]:
    """Put X around each piece of text of an f-string, one piece a mutant."""
    for index, part in enumerate(node.parts):
        if isinstance(part, cst.FormattedStringText):
            changed = part.with_changes(value=f"XX{part.value}XX")
            yield node.with_changes(parts=[*node.parts[:index], changed, *node.parts[index + 1 :]])


def outcomes() -> dict[str, dict[str, str]]:
    """Return the outcome of each mutant, and the change where no test noticed it."""
    found: dict[str, dict[str, str]] = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, code in data.exit_code_by_key.items():
            outcome = status_by_exit_code[code]
            found[mutant] = {"outcome": outcome}
            if outcome not in ("killed", "timeout"):
                found[mutant]["diff"] = get_diff_for_mutant(mutant, path=path)
    return found


def forget_survivors() -> None:
    """Have every mutant tried again that no test noticed: there may be new tests."""
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        if data.exit_code_by_key:
            known = data.exit_code_by_key.items()
            data.exit_code_by_key = {mutant: code or None for mutant, code in known}
            data.save()


def main() -> None:
    """Try what has not been noticed; also where that is stopped, what is known is kept."""
    mutation_operators.append((cst.FormattedString, change_text))
    forget_survivors()
    try:
        cli(["run", "--max-children", "1"], standalone_mode=False)
    finally:
        text = json.dumps(outcomes(), indent=1, ensure_ascii=False)
        Path(sys.argv[1]).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
