"""A directory of a run's tables, with checksums that are verified when it is read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.core.errors import RunError
from analysis.core.files import contents, names_in, to_disk
from analysis.core.wording import capitalised
from analysis.runs import former
from analysis.runs.schema import TABLES
from analysis.runs.tables import as_declared

REQUIRED = ("trials", "requests")
CHECKSUMS = "checksums.json"
OURS = frozenset({CHECKSUMS, *(f"{name}.parquet" for name in TABLES)})
"""Names of the files in such a directory."""
_LARGE = 1_000_000
"""Size in bytes from which on several threads read a file."""


def write_tables(directory: Path, tables: Mapping[str, pa.Table]) -> None:
    """Write tables, then their checksums, computed from the data in memory."""
    sums = {}
    for name, table in tables.items():
        written = pa.BufferOutputStream()
        pq.write_table(table, written, compression="zstd", write_page_checksum=True)
        content = written.getvalue()
        file = directory / f"{name}.parquet"
        file.write_bytes(content)
        to_disk(file)
        sums[file.name] = hashlib.sha256(content).hexdigest()
    listed = {"algorithm": "sha256", "files": sums}
    (directory / CHECKSUMS).write_text(json.dumps(listed, indent=2) + "\n")
    to_disk(directory / CHECKSUMS)
    to_disk(directory)


@dataclass(frozen=True)
class Part:
    """A directory of tables: of one trial, or of a packed run."""

    directory: Path
    manifest: Mapping[str, Any]
    packed: bool = False

    def read(self, names: Collection[str]) -> dict[str, pa.Table]:
        """Read the existing ones of these tables, and verify their checksums.

        Raises RunError, with the file, if the directory is not part of a run, or if a file is
        missing, damaged, unreadable or from another run.
        """
        return self._read(names, *self._listed())

    def verify(self) -> tuple[dict[str, pa.Table], bool]:
        """Read all tables; return them, and whether they have checksums. Raises as `read` does."""
        present, sums = self._listed()
        return self._read(TABLES, present, sums), sums is not None

    def file(self, name: str) -> Path:
        """Return the file of a table."""
        return self.directory / f"{self._stem(name)}.parquet"

    def _stem(self, name: str) -> str:
        return former.FILES.get(name, name) if self._is_former else name

    @property
    def _is_former(self) -> bool:
        return self.manifest["schema_version"] in former.VERSIONS

    def _ours(self) -> set[str]:
        """Return the names of the files in such a directory."""
        return {CHECKSUMS, *(self.file(name).name for name in TABLES)}

    def _read(
        self, names: Collection[str], present: Collection[str], sums: Mapping[str, str] | None
    ) -> dict[str, pa.Table]:
        due = {*names, "trials"} if self.packed else {*names}
        if self._is_former and "trials" in names:
            due |= {"invocations", "snapshots"}  # they show the tokens of a page
        tables = {
            name: self._table(name, None if sums is None else sums[name])
            for name in TABLES
            if name in due and name in present
        }
        self._check_trials(tables)
        if self._is_former and "trials" in names:
            tables["trials"] = former.with_page_tokens(tables)
        return {name: table for name, table in tables.items() if name in names}

    def _listed(self) -> tuple[set[str], dict[str, str] | None]:
        """Return the names of the existing tables, and their checksums if known."""
        try:
            there = names_in(self.directory)
        except NotADirectoryError:
            raise RunError(
                f"{self.directory} is a file, not a trial of the run. Move it out of"
                f" {self.directory.parent}."
            ) from None
        except FileNotFoundError:
            raise RunError(f"{self.directory} is missing. Restore it, or try again.") from None
        if not self.packed and not there & self._ours():
            raise RunError(
                f"{self.directory} is not a trial of the run: it has none of a trial's files. Move"
                f" it out of {self.directory.parent}."
            )
        present = {name for name in TABLES if self.file(name).name in there}
        sums = self._checksums()
        for name in TABLES:
            if name not in present and (name in REQUIRED or name in (sums or ())):
                raise RunError(f"{self.file(name)} is missing. {self._fix()}.")
            if sums is not None and name in present and name not in sums:
                raise RunError(
                    f"{self.file(name)} does not belong to the other tables in its directory. Move"
                    " it elsewhere."
                )
        return present, sums

    def _checksums(self) -> dict[str, str] | None:
        """Return the checksums of the tables by name; None for a run written without checksums."""
        file = self.directory / CHECKSUMS
        try:
            listed = json.loads(contents(file))["files"]
            now = {self.file(name).name: name for name in TABLES}
            return {now.get(name, name): str(digest) for name, digest in listed.items()}
        except FileNotFoundError:
            if self.manifest["schema_version"] == 1:
                return None
            raise RunError(f"{file} is missing. {self._fix()}.") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{file} is damaged. {self._fix()}.") from error

    def _table(self, name: str, digest: str | None) -> pa.Table:
        """Return a table with the declared schema; `digest` is None if unknown."""
        file = self.file(name)
        damaged = f"{file} is damaged. {self._fix()}."
        try:
            content = contents(file)
        except FileNotFoundError:
            raise RunError(f"{file} is missing. {self._fix()}.") from None
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            raise RunError(damaged)
        try:
            reader = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table = reader.read(use_threads=len(content) > _LARGE)
            if digest is None:
                table.validate(full=True)
            return as_declared(name, table, self.manifest["schema_version"])
        except RunError as error:
            raise RunError(
                f"{file} has wrong content: {str(error).rstrip('.')}. {self._fix()}."
            ) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RunError(damaged) from error

    def _check_trials(self, tables: Mapping[str, pa.Table]) -> None:
        """Raise RunError for rows of another trial, as in copied files, and for repeated trials."""
        known = {self.directory.name}
        trials = tables.get("trials")
        if trials is not None:
            ids = trials["trial_id"].to_pylist()
            if self.packed:
                known = set(ids)
            again = [trial_id for trial_id, number in Counter(ids).items() if number > 1]
            if again or not (self.packed or ids):
                what = f"the trial {again[0]} twice" if again else "no trial"
                raise RunError(f"{self.file('trials')} has {what}. {self._fix()}.")
            run_id = self.manifest.get("run_id")
            if run_id is not None and (strange := {*trials["run_id"].to_pylist()} - {run_id}):
                raise RunError(
                    f"{self.file('trials')} belongs to the run {min(strange)}, not to {run_id}."
                    f" {self._fix(copied=True)}."
                )
        for name, table in tables.items():
            if strange := {*table["trial_id"].unique().to_pylist()} - known:
                raise RunError(
                    f"{self.file(name)} has rows of another trial, {min(strange)}."
                    f" {self._fix(copied=True)}."
                )

    def _fix(self, *, copied: bool = False) -> str:
        """Return how to repair the run; never advise to delete files that a run did not write."""
        if self.packed:
            return "Restore the packed run"
        try:
            foreign = sorted(names_in(self.directory) - self._ours())
        except (OSError, RunError):
            foreign = []
        moved = f"move {self.directory / foreign[0]} elsewhere, " if foreign else ""
        what = f"move {self.directory} out of the run" if copied else f"delete {self.directory}"
        return capitalised(f"{moved}{what} and resume the run")
