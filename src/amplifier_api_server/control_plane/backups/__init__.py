"""Backups: everything of an installation in one file, and back from it.

An archive is a gzipped tar (pax) of plain files and folders: `about.json` first, `checksums` last (a JSON object a line, in
the order of the archive), and between them the data folder's own names. What can't be a plain file, the symbolic links of
sessions' folders, is in `links`. So an archive that was cut off is told by its missing end, and what unpacks it never meets a
link.
"""

from __future__ import annotations

FORMAT = 1
ABOUT, LINKS, CHECKSUMS = "about.json", "links", "checksums"
DATABASE = "amplifier.db"
CHUNK_BYTES = 1024 * 1024
