"""Reproduces a failure of a recorded run: the smallest workload, and a script that shows it."""

from __future__ import annotations

from analysis.reproduction.candidate import Candidate
from analysis.reproduction.reproduce import Reproduction, reproduce
from analysis.reproduction.symptom import Symptom

__all__ = ["Candidate", "Reproduction", "Symptom", "reproduce"]
