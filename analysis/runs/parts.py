"""A directory of a run's tables, written with their checksums and held against them when read."""

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
from analysis.runs import former
from analysis.runs.schema import TABLES
from analysis.runs.tables import as_declared

REQUIRED = ("trials", "requests")
CHECKSUMS = "checksums.json"
OURS = frozenset({CHECKSUMS, *(f"{name}.parquet" for name in TABLES)})
"""The names of the files that such a directory consists of."""
_LARGE = 1_000_000
"""Bytes of a file from which on several threads read it."""


def write_tables(directory: Path, tables: Mapping[str, pa.Table]) -> None:
    """Write tables, then their checksums, which are of what was meant to be on disk."""
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
    """A directory of tables: a trial's, or that of a packed run."""

    directory: Path
    manifest: Mapping[str, Any]
    packed: bool = False

    def read(self, names: Collection[str]) -> dict[str, pa.Table]:
        """Read those of the tables that there are, and hold them against their checksums.

        Raises RunError, with the file to look at, if this is no part of a run, or something in it
        is missing, damaged, may not be read or belongs elsewhere.
        """
        return self._read(names, *self._listed())

    def verify(self) -> tuple[dict[str, pa.Table], bool]:
        """Read all tables; return them, and whether there were checksums. Raises as `read` does."""
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
        """Return the names of the files that such a directory consists of."""
        return {CHECKSUMS, *(self.file(name).name for name in TABLES)}

    def _read(
        self, names: Collection[str], present: Collection[str], sums: Mapping[str, str] | None
    ) -> dict[str, pa.Table]:
        due = {*names, "trials"} if self.packed else {*names}
        if self._is_former and "trials" in names:
            due |= {"invocations", "snapshots"}  # they show how many tokens a page has
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
        """Return the names of the tables that there are, and of what is known their checksums."""
        try:
            there = names_in(self.directory)
        except NotADirectoryError:
            raise RunError(
                f"{self.directory} is no trial of the run but a file: move it out of"
                f" {self.directory.parent}."
            ) from None
        except FileNotFoundError:
            raise RunError(f"{self.directory} is gone: restore it, or try again.") from None
        if not self.packed and not there & self._ours():
            raise RunError(
                f"{self.directory} is no trial of the run, for it has none of a trial's files: move"
                f" it out of {self.directory.parent}."
            )
        present = {name for name in TABLES if self.file(name).name in there}
        sums = self._checksums()
        for name in TABLES:
            if name not in present and (name in REQUIRED or name in (sums or ())):
                raise RunError(f"{self.file(name)} is missing: {self._mend()}.")
            if sums is not None and name in present and name not in sums:
                raise RunError(
                    f"{self.file(name)} was not written with the tables beside it: move it"
                    " elsewhere."
                )
        return present, sums

    def _checksums(self) -> dict[str, str] | None:
        """Return the checksums of the tables by their names, None where there never were any."""
        file = self.directory / CHECKSUMS
        try:
            listed = json.loads(contents(file))["files"]
            now = {self.file(name).name: name for name in TABLES}
            return {now.get(name, name): str(digest) for name, digest in listed.items()}
        except FileNotFoundError:
            if self.manifest["schema_version"] == 1:
                return None
            raise RunError(f"{file} is missing: {self._mend()}.") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{file} is damaged: {self._mend()}.") from error

    def _table(self, name: str, digest: str | None) -> pa.Table:
        """Return a table with the declared schema; `digest` is None where it is not known."""
        file = self.file(name)
        damaged = f"{file} is damaged: {self._mend()}."
        try:
            content = contents(file)
        except FileNotFoundError:
            raise RunError(f"{file} is missing: {self._mend()}.") from None
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
                f"{file} does not hold what it should: {str(error).rstrip('.')}; {self._mend()}."
            ) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RunError(damaged) from error

    def _check_trials(self, tables: Mapping[str, pa.Table]) -> None:
        """Refuse rows that are not of this trial, and a trial that is there twice.

        A copied file or directory has rows of the trial that it was copied from.
        """
        known = {self.directory.name}
        trials = tables.get("trials")
        if trials is not None:
            ids = trials["trial_id"].to_pylist()
            if self.packed:
                known = set(ids)
            again = [trial_id for trial_id, number in Counter(ids).items() if number > 1]
            if again or not (self.packed or ids):
                what = f"the trial {again[0]} twice" if again else "no trial"
                raise RunError(f"{self.file('trials')} has {what}: {self._mend()}.")
            run_id = self.manifest.get("run_id")
            if run_id is not None and (strange := {*trials["run_id"].to_pylist()} - {run_id}):
                raise RunError(
                    f"{self.file('trials')} is of the run {min(strange)}, not of {run_id}:"
                    f" {self._mend(copied=True)}."
                )
        for name, table in tables.items():
            if strange := {*table["trial_id"].unique().to_pylist()} - known:
                raise RunError(
                    f"{self.file(name)} has rows of the trial {min(strange)}, which do not belong"
                    f" there: {self._mend(copied=True)}."
                )

    def _mend(self, *, copied: bool = False) -> str:
        """Return how to repair it; files that a run did not write are never to be deleted."""
        if self.packed:
            return "restore the packed run"
        try:
            foreign = sorted(names_in(self.directory) - self._ours())
        except (OSError, RunError):
            foreign = []
        moved = f"move {self.directory / foreign[0]} elsewhere, " if foreign else ""
        what = f"move {self.directory} out of the run" if copied else f"delete {self.directory}"
        return f"{moved}{what} and resume the run"
