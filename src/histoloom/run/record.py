"""The base class of records: what a stage writes as JSON, and what others read of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Values as they stand in a JSON file; unknown keys of files of other versions are ignored."""

    # NaN stays NaN, so that ``write_json`` refuses it.
    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="ignore", ser_json_inf_nan="constants")
