"""The package under which user block files are loaded: `my_blocks.py` as `nas.user.my_blocks`.

It holds no file of its own and runs none by itself: only what `nas.load_blocks` was given can be imported from here. Who
needs another is told so by an InputError, not by a ModuleNotFoundError, at which Ultralytics would try to install a
package of that name.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

from nas.errors import InputError

__path__.clear()

# Module name -> file, of every file that was named by the user.
FILES: dict[str, Path] = {}


def not_loaded(file: str) -> InputError:
    """The error of whoever meets a block of a file that was not named."""
    return InputError(
        f"this model needs the user block file {file}, which was not loaded",
        f"call nas.load_blocks('{file}') first, or give the command --blocks {file} (its code runs)",
    )


class _Loader(SourceFileLoader):
    """Compiles what the file holds now: no cached bytecode is trusted, and none is left beside a user's file."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Finder(MetaPathFinder):
    """Finds the modules of FILES."""

    def find_spec(self, fullname: str, *_path: object) -> ModuleSpec | None:
        """Raises InputError for a module of this package whose file was not named."""
        package, _, stem = fullname.rpartition(".")
        if package != __name__:
            return None
        if stem not in FILES:
            raise not_loaded(f"{stem}.py")
        file = str(FILES[stem])
        return spec_from_file_location(fullname, file, loader=_Loader(fullname, file))


sys.meta_path.append(_Finder())
