"""What was measured, as text, as HTML and as a page."""

from __future__ import annotations

from pathlib import Path

from infalign.instrument.html import as_html
from infalign.instrument.numbers import Numbers
from infalign.instrument.page import write_page
from infalign.instrument.text import as_text


class Measurement(Numbers):
    """What samples say of policies over their reference: its numbers, and how they are shown."""

    def save_page(self, path: str | Path) -> None:
        """Write the report: one HTML file that opens from disk and loads nothing.

        Raises:
            InputError: if it cannot be written.
        """
        write_page(self, Path(path))

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)
