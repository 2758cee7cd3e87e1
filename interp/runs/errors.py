"""What can be wrong with a run, one class for each thing that a caller may want to treat differently."""

from __future__ import annotations


class RunError(ValueError):
    """A run was asked for something that it cannot do; base of the others."""


class RunNotFound(RunError):
    """No run, or more than one, answers to the name."""


class RunDamaged(RunError):
    """A file of the run is missing, cut off, changed, or not ours."""


class SchemaError(RunError):
    """The run was written by a version whose format this one cannot read."""


class RunBusy(RunError):
    """Another process, or another part of this one, is writing the run."""
